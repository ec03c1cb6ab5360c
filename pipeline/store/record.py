"""One video's tensors as the bytes that go to disk.

N stored rows, S DeepStack layers, D channels, L columns of the stretch, G tokens of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.store.head import Head, lay_out
from pipeline.store.shuffled_zstd import compress_rows
from schemas.config import check_encoding
from schemas.errors import CacheError, DtypeError, ShapeError
from schemas.tokens import FEATURE_DTYPES, ITEM_BYTES, RecordLayout, TensorSpec

if TYPE_CHECKING:
    import torch

# The bits of the exponent, all set in infinities and NaN only, as an integer of the same width.
_EXPONENT_BITS = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000)}

_CHECK_BYTES = 2**19

_Tensors: TypeAlias = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """A video ready to be committed.

    ``head`` is the bytes before the features, ``features`` uint8 the bytes of the rows in storage
    order: ``(N, bytes per row)``, or ``(bytes,)`` where they are compressed. Equal input gives
    equal bytes.
    """

    key: str
    layout: RecordLayout
    head: bytes
    features: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        if len(self.head) != self.layout.head_bytes:
            raise ShapeError(
                f"video key {self.key}: head of {len(self.head)} bytes, the layout says "
                f"{self.layout.head_bytes}"
            )
        if len(self.head) + self.features.nbytes != self.layout.num_bytes:
            raise ShapeError(
                f"video key {self.key}: features of {self.features.nbytes} bytes, the layout says "
                f"{self.layout['features'].num_bytes}"
            )

    def __repr__(self) -> str:
        spec = self.layout["features"]
        return f"VideoRecord(key={self.key!r}, features={spec.shape} {spec.dtype})"

    @cached_property
    def head_digest(self) -> int:
        """xxh3_64 of the head; it covers the digests of the rows, and so everything."""
        return xxhash.xxh3_64_intdigest(self.head)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The video's byte range, in order."""
        yield self.head
        yield self.features.reshape(-1).data


def pack_record(
    *,
    key: str,
    features: torch.Tensor,
    score: torch.Tensor,
    grid_index: torch.Tensor,
    prompt_index: torch.Tensor,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    match: torch.Tensor,
) -> VideoRecord:
    """Check one video's tensors and pack them; rows are in storage order.

    For a nested fusion method storage order is anchors first, then ascending score: any prefix is
    a valid smaller budget. The stretch ``input_ids``/``position_ids`` holds the texts, the markers
    and exactly the N stored tokens.

    Args:
        key: sha256 of content, fingerprint and decoder, in hex.
        features: ``(N, (1+S)*D)`` bfloat16, float16 or float32, finite, on any device.
        score: ``(N,)`` float; stored as float32.
        grid_index: ``(N,)`` integer places in the grid of G tokens, distinct.
        prompt_index: ``(N,)`` integer columns of the stretch, distinct.
        input_ids: ``(L,)`` integer.
        position_ids: ``(3, L)`` integer.
        match: ``(G,)`` integer grid indices, -1 where no token stands for this one.

    Raises:
        DtypeError: a tensor of another type.
        ShapeError: shapes that contradict each other.
        BoundsError: an index out of range or given twice.
        CacheError: features that are not finite.
    """
    dtype, rows = _feature_bytes(features)
    _require_finite(rows, dtype, key)
    tensors: _Tensors = {
        "row_digest": _row_digests(rows),
        "score": _as_float32("score", score),
        "grid_index": _as_int32("grid_index", grid_index),
        "prompt_index": _as_int32("prompt_index", prompt_index),
        "input_ids": _as_int32("input_ids", input_ids),
        "position_ids": _as_int32("position_ids", position_ids),
        "match": _as_int32("match", match),
    }
    record = _joined(key, tensors, TensorSpec("features", dtype, tuple(features.shape), 0), rows)
    Head.from_bytes(record.head, record.layout)
    return record


def encode_record(record: VideoRecord, encoding: str, *, num_layers: int) -> VideoRecord:
    """The same video with its rows stored in another way; "none" is ``record`` itself.

    Args:
        record: as ``pack_record`` gives it.
        encoding: one of ``ENCODINGS``.
        num_layers: 1+S, the layers of a row, of which "fp8" scales each on its own.

    Raises:
        ConfigError: no such encoding.
        ShapeError: rows that do not consist of so many equal layers.
    """
    check_encoding(encoding)
    return _ENCODERS[encoding](record, num_layers)


def _compressed(record: VideoRecord, num_layers: int) -> VideoRecord:
    blob, frame_end = compress_rows(record.features, ITEM_BYTES[record.layout["features"].dtype])
    row_digest, others = _split_head(record)
    return _joined(
        record.key,
        {"row_digest": row_digest, "frame_end": frame_end.astype("<i8"), **others},
        TensorSpec("features", "U8", (len(blob),), 0),
        np.frombuffer(blob, np.uint8),
    )


def _rounded(record: VideoRecord, num_layers: int) -> VideoRecord:
    import torch

    from pipeline.dtypes import TORCH_DTYPES
    from pipeline.store.fp8 import encode_fp8

    spec = record.layout["features"]
    features = torch.from_numpy(record.features).view(TORCH_DTYPES[spec.dtype])
    codes, scale = (tensor.numpy() for tensor in encode_fp8(features, num_layers))
    _, others = _split_head(record)
    return _joined(
        record.key,
        {"row_digest": _row_digests(codes), "scale": scale.astype("<f4"), **others},
        TensorSpec("features", "F8_E4M3", spec.shape, 0),
        codes,
    )


_ENCODERS: dict[str, Callable[[VideoRecord, int], VideoRecord]] = {
    "none": lambda record, num_layers: record,
    "zstd": _compressed,
    "fp8": _rounded,
}


def _split_head(record: VideoRecord) -> tuple[npt.NDArray[np.uint64], _Tensors]:
    """The digests of the rows, and the tensors that say the same in every encoding."""
    head = Head.from_bytes(record.head, record.layout)
    names = [spec.name for spec in record.layout if spec.name not in ("pad", "features")]
    others = {name: getattr(head, name) for name in names if name != "row_digest"}
    return head.row_digest, others


def _joined(
    key: str, tensors: _Tensors, features: TensorSpec, rows: npt.NDArray[np.uint8]
) -> VideoRecord:
    layout = lay_out(tensors, features)
    head = b"".join(values.tobytes() for values in tensors.values())
    head += bytes(layout["pad"].num_bytes)
    return VideoRecord(key=key, layout=layout, head=head, features=rows)


def _row_digests(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.array([xxhash.xxh3_64_intdigest(row) for row in rows], dtype="<u8")


def _feature_bytes(features: torch.Tensor) -> tuple[str, npt.NDArray[np.uint8]]:
    import torch

    from pipeline.dtypes import STORAGE_DTYPES

    if features.dtype not in STORAGE_DTYPES:
        raise DtypeError(f"features are {features.dtype}; format 1 stores {FEATURE_DTYPES}")
    if features.ndim != 2 or 0 in features.shape:
        raise ShapeError(f"features have shape {tuple(features.shape)}, expected (N, (1+S)*D)")
    rows = features.detach().cpu().contiguous().view(torch.uint8).numpy()
    return STORAGE_DTYPES[features.dtype], rows


def _require_finite(rows: npt.NDArray[np.uint8], dtype: str, key: str) -> None:
    integer, exponent = _EXPONENT_BITS[dtype]
    step = max(1, _CHECK_BYTES // rows.shape[1])
    for first in range(0, len(rows), step):
        bits = rows[first : first + step].view(integer) & exponent
        if bits.max() == exponent:
            row = first + int((bits.max(axis=1) == exponent).argmax())
            raise CacheError(
                f"video key {key}: feature row {row} holds NaN or infinity; nothing was stored. "
                "Encode with dtype bfloat16 or float32, or look at this video's frames."
            )


def _as_int32(name: str, values: torch.Tensor) -> npt.NDArray[np.int32]:
    array = values.detach().cpu().numpy()
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{name} is {values.dtype}, expected integers")
    limits = np.iinfo(np.int32)
    if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
        raise DtypeError(f"{name} holds {array.min()} to {array.max()}, beyond 32 bits")
    return np.ascontiguousarray(array, dtype="<i4")


def _as_float32(name: str, values: torch.Tensor) -> npt.NDArray[np.float32]:
    if not values.is_floating_point():
        raise DtypeError(f"{name} is {values.dtype}, expected float32")
    return np.ascontiguousarray(values.detach().cpu().float().numpy(), dtype="<f4")
