"""The head of a video's byte range: every tensor but the features.

N stored rows, L columns of the prompt stretch, G tokens of the uncompressed grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import BoundsError, ShapeError
from schemas.tokens import ALIGNMENT_BYTES, RecordLayout, TensorSpec

NUMPY_DTYPES = {"U64": "<u8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "U8": "u1"}

NO_MATCH = -1
"""``match`` of a token that no other token stands for."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The small tensors of one video, rows in storage order.

    ``row_digest`` (N,) uint64: xxh3_64 of each feature row. ``score`` (N,) float32.
    ``grid_index`` (N,) int32: the token's place in the grid, row-major t, y, x.
    ``prompt_index`` (N,) int32: its column in the stretch. ``input_ids`` (L,) and
    ``position_ids`` (3, L) int32: the stretch, whose visual columns are exactly the N stored
    tokens. ``match`` (G,) int32: the grid index of the token that stands for each token.
    With encoding "zstd" ``frame_end`` (F,) int64: where each frame of rows ends. With "fp8"
    ``scale`` (N, 1+S) float32: what the codes of a row's layers are multiplied by.

    Raises:
        ShapeError: tensors that contradict each other.
        BoundsError: an index outside its range, or one given twice.
    """

    row_digest: npt.NDArray[np.uint64]
    score: npt.NDArray[np.float32]
    grid_index: npt.NDArray[np.int32]
    prompt_index: npt.NDArray[np.int32]
    input_ids: npt.NDArray[np.int32]
    position_ids: npt.NDArray[np.int32]
    match: npt.NDArray[np.int32]
    frame_end: npt.NDArray[np.int64] | None = None
    scale: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        num_rows, length = len(self.row_digest), len(self.input_ids)
        for name in ("score", "grid_index", "prompt_index"):
            if getattr(self, name).shape != (num_rows,):
                raise ShapeError(
                    f"{name} has shape {getattr(self, name).shape}, expected ({num_rows},)"
                )
        if self.position_ids.shape != (3, length):
            raise ShapeError(
                f"position_ids has shape {self.position_ids.shape}, expected (3, {length})"
            )
        if num_rows == 0:
            raise ShapeError("a video has no token; at least one is stored for each")
        if np.isnan(self.score).any():
            raise ShapeError("score holds NaN, so rows have no order; expected numbers")
        _require_distinct("grid_index", self.grid_index, len(self.match))
        _require_distinct("prompt_index", self.prompt_index, length)
        _require_range("match", self.match, NO_MATCH, len(self.match))

    def __repr__(self) -> str:
        return f"Head(rows={self.num_rows}, columns={len(self.input_ids)}, grid={len(self.match)})"

    @property
    def num_rows(self) -> int:
        return len(self.row_digest)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, layout: RecordLayout) -> "Head":
        """View ``data``, the bytes before the features, as tensors; nothing is copied."""
        names = [name for name in cls.__slots__ if name in layout]
        tensors: dict[str, Any] = {name: _view(data, layout[name]) for name in names}
        return cls(**tensors)


def lay_out(tensors: Mapping[str, npt.NDArray[np.generic]], features: TensorSpec) -> RecordLayout:
    """The layout of ``tensors`` in their order, padding, then ``features``, whatever its offset."""
    specs: list[TensorSpec] = []
    position = 0
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    for name, values in tensors.items():
        code = names[values.dtype.newbyteorder("<").str.replace("|", "")]
        specs.append(TensorSpec(name, code, values.shape, position))
        position = specs[-1].end
    specs.append(TensorSpec("pad", "U8", (-position % ALIGNMENT_BYTES,), position))
    start = specs[-1].end
    specs.append(TensorSpec(features.name, features.dtype, features.shape, start))
    return RecordLayout(tuple(specs))


def _view(data: bytes | bytearray | memoryview, spec: TensorSpec) -> npt.NDArray[np.generic]:
    count = spec.num_bytes // np.dtype(NUMPY_DTYPES[spec.dtype]).itemsize
    flat = np.frombuffer(data, NUMPY_DTYPES[spec.dtype], count=count, offset=spec.offset)
    return flat.reshape(spec.shape)


def _require_range(name: str, values: npt.NDArray[np.int32], low: int, end: int) -> None:
    if values.size and not (low <= values.min() and values.max() < end):
        raise BoundsError(
            f"{name} holds {values.min()} to {values.max()}, expected {low} to {end - 1}"
        )


def _require_distinct(name: str, values: npt.NDArray[np.int32], end: int) -> None:
    _require_range(name, values, 0, end)
    seen = np.zeros(end, dtype=np.bool_)
    seen[values] = True
    if np.count_nonzero(seen) != values.size:
        raise BoundsError(f"{name} holds an index twice; every stored token has a place of its own")
