"""One video's tensors as the bytes that go to disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.store.head import Head, lay_out
from schemas.errors import CacheError, DtypeError, ShapeError
from schemas.tokens import FEATURE_DTYPES, RecordLayout, TensorSpec

if TYPE_CHECKING:
    import torch

# The bits of the exponent, all set in infinities and NaN only, as an integer of the same width.
_EXPONENT_BITS = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000)}

_CHECK_BYTES = 2**19


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """A video ready to be committed.

    ``head`` is the bytes before the features, ``features`` ``(N, bytes per row)`` uint8 the rows
    in storage order. Equal input gives equal bytes.
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
    digests = [xxhash.xxh3_64_intdigest(row) for row in rows]
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "row_digest": np.array(digests, dtype="<u8"),
        "score": _as_float32("score", score),
        "grid_index": _as_int32("grid_index", grid_index),
        "prompt_index": _as_int32("prompt_index", prompt_index),
        "input_ids": _as_int32("input_ids", input_ids),
        "position_ids": _as_int32("position_ids", position_ids),
        "match": _as_int32("match", match),
    }
    layout = lay_out(tensors, TensorSpec("features", dtype, tuple(features.shape), 0))
    head = b"".join(values.tobytes() for values in tensors.values())
    head += bytes(layout["pad"].num_bytes)
    Head.from_bytes(head, layout)
    return VideoRecord(key=key, layout=layout, head=head, features=rows)


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
