"""How the tensors of one video lie in its byte range.

Sides: N stored rows, L columns of the prompt stretch, G tokens of the grid, C values and S layers
of a row, F frames of compressed rows, B bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from schemas.errors import BoundsError, DtypeError, ShapeError

ITEM_BYTES = {
    "U64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "U8": 1,
    "F8_E4M3": 1,
}
"""Tensor types of format 1, by their safetensors names, with bytes per element."""

FEATURE_DTYPES = ("F32", "BF16", "F16")

ALIGNMENT_BYTES = 64
"""Records and feature rows begin at multiples of this."""

ENCODINGS = ("none", "zstd", "fp8")
"""How feature rows may be stored. "none": as they are; "zstd": compressed, exact; "fp8": rounded
to one byte per value."""

FRAME_ROWS = 48
"""Rows that "zstd" compresses together; readers count frames by it."""

_Tensors: TypeAlias = dict[str, tuple[tuple[str, ...], str]]

_HEAD_TENSORS: _Tensors = {
    "row_digest": (("U64",), "N"),
    "score": (("F32",), "N"),
    "grid_index": (("I32",), "N"),
    "prompt_index": (("I32",), "N"),
    "input_ids": (("I32",), "L"),
    "position_ids": (("I32",), "3L"),
    "match": (("I32",), "G"),
}

_ROW_TENSORS: dict[str, _Tensors] = {
    "none": {"features": (FEATURE_DTYPES, "NC")},
    "zstd": {"frame_end": (("I64",), "F"), "features": (("U8",), "B")},
    "fp8": {"scale": (("F32",), "NS"), "features": (("F8_E4M3",), "NC")},
}

_TENSORS = {encoding: {**_HEAD_TENSORS, **tensors} for encoding, tensors in _ROW_TENSORS.items()}
"""Possible types and the sides of each tensor, by encoding; a letter is one number."""


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
        encoding, num_rows = self.encoding, self.num_rows
        known = _TENSORS[encoding]
        strange = {spec.name for spec in self.tensors} - {*known, "pad"}
        if strange:
            raise ShapeError(f"tensors {sorted(strange)} have no place in encoding {encoding!r}")
        sizes = {"3": 3, "N": num_rows, "F": -(-num_rows // FRAME_ROWS)}
        for name, (dtypes, sides) in known.items():
            spec = self[name]
            if spec.dtype not in dtypes:
                raise DtypeError(
                    f"tensor {name!r} has type {spec.dtype!r}, expected {' or '.join(dtypes)}"
                )
            if len(spec.shape) != len(sides):
                raise ShapeError(
                    f"tensor {name!r} has shape {spec.shape}, expected {len(sides)} sides"
                )
            expected = tuple(map(sizes.setdefault, sides, spec.shape))
            if spec.shape != expected:
                raise ShapeError(f"tensor {name!r} has shape {spec.shape}, expected {expected}")
        if self.tensors[-1].name != "features":
            raise ShapeError(f"features must come last, found {self.tensors[-1].name!r}")

    @property
    def encoding(self) -> str:
        """How the rows are stored, one of ``ENCODINGS``: "zstd" and "fp8" have a tensor more."""
        if "frame_end" in self:
            return "zstd"
        return "fp8" if "scale" in self else "none"

    @property
    def num_rows(self) -> int:
        """N, the stored rows."""
        return self["row_digest"].shape[0]

    def __contains__(self, name: object) -> bool:
        return any(spec.name == name for spec in self.tensors)

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
