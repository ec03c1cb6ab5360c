"""How the tensors of one video lie in its byte range."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from schemas.errors import BoundsError, DtypeError, ShapeError

ITEM_BYTES = {"U64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1}
"""Tensor types of format 1, by their safetensors names, with bytes per element."""

FEATURE_DTYPES = ("F32", "BF16", "F16")

ALIGNMENT_BYTES = 64
"""Records and feature rows begin at multiples of this."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: ``offset`` is in bytes from the start of the video's range."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """All tensors of one video, in file order; they fill the range without hole or overlap.

    Raises:
        DtypeError: a type outside the format.
        ShapeError: a negative dimension, or tensors that contradict each other.
        BoundsError: tensors that do not follow each other byte for byte.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        position = 0
        for spec in self.tensors:
            if spec.dtype not in ITEM_BYTES:
                raise DtypeError(
                    f"tensor {spec.name!r} has type {spec.dtype!r}; "
                    f"format 1 knows {list(ITEM_BYTES)}"
                )
            if any(side < 0 for side in spec.shape):
                raise ShapeError(f"tensor {spec.name!r} has shape {spec.shape}")
            if spec.offset != position:
                raise BoundsError(
                    f"tensor {spec.name!r} begins at byte {spec.offset}, expected {position}"
                )
            position = spec.end
        self._check_shapes()

    def _check_shapes(self) -> None:
        if len({spec.name for spec in self.tensors}) != len(self.tensors):
            raise ShapeError(f"tensor names repeat: {[spec.name for spec in self.tensors]}")
        expected = {
            "row_digest": ("U64", 1),
            "score": ("F32", 1),
            "grid_index": ("I32", 1),
            "prompt_index": ("I32", 1),
            "input_ids": ("I32", 1),
            "position_ids": ("I32", 2),
            "match": ("I32", 1),
            "features": (None, 2),
        }
        for name, (dtype, ndim) in expected.items():
            spec = self[name]
            if spec.dtype != dtype and (dtype or spec.dtype not in FEATURE_DTYPES):
                raise DtypeError(
                    f"tensor {name!r} has type {spec.dtype!r}, expected {dtype or FEATURE_DTYPES}"
                )
            if len(spec.shape) != ndim:
                raise ShapeError(f"tensor {name!r} has shape {spec.shape}, expected {ndim} sides")
        rows = self["features"].shape[0]
        for name in ("row_digest", "score", "grid_index", "prompt_index"):
            if self[name].shape != (rows,):
                raise ShapeError(
                    f"tensor {name!r} has shape {self[name].shape}, expected ({rows},)"
                )
        length = self["input_ids"].shape[0]
        if self["position_ids"].shape != (3, length):
            raise ShapeError(
                f"position_ids has shape {self['position_ids'].shape}, expected (3, {length})"
            )
        if self.tensors[-1].name != "features":
            raise ShapeError(f"features must come last, found {self.tensors[-1].name!r}")

    def __getitem__(self, name: str) -> TensorSpec:
        for spec in self.tensors:
            if spec.name == name:
                return spec
        raise ShapeError(f"tensor {name!r} is missing; found {[s.name for s in self.tensors]}")

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    @property
    def num_bytes(self) -> int:
        return self.tensors[-1].end

    @property
    def head_bytes(self) -> int:
        """Bytes before the features: everything a reader needs to place their rows."""
        return self["features"].offset
