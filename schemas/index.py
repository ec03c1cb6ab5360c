"""One row of the index: everything people ask about a video, and all a reader needs to fetch it."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from schemas.errors import DtypeError, IndexCorruptError, ShapeError, ShardNameError
from schemas.grid import TokenGrid
from schemas.tokens import FEATURE_DTYPES, RecordLayout, TensorSpec
from schemas.video import Scalar

FORMAT_VERSION = 1

STATUSES = ("ok", "failed", "quarantined", "damaged")
"""Only "ok" rows have tensors; "damaged" says that the tensors of older rows are no more."""

DIGEST_NAME = re.compile(r"[0-9a-f]{64}")
"""Names of shards and fragments are sha256 digests in hex; nothing else is ever opened."""

_LAYOUT_TYPE = pa.list_(
    pa.struct(
        [
            ("name", pa.string()),
            ("dtype", pa.string()),
            ("shape", pa.list_(pa.int64())),
            ("offset", pa.int64()),
        ]
    )
)

_COLUMNS: dict[str, pa.DataType] = {
    "video_id": pa.string(),
    "path": pa.string(),
    "status": pa.string(),
    "error_kind": pa.string(),
    "error_message": pa.string(),
    "attempts": pa.int32(),
    "duration_seconds": pa.float64(),
    "fps": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "container": pa.string(),
    "video_stream": pa.int32(),
    "codec": pa.string(),
    "num_source_frames": pa.int64(),
    "num_frames": pa.int32(),
    "num_bad_packets": pa.int32(),
    "num_rescaled_frames": pa.int32(),
    "decoder": pa.string(),
    "decoder_version": pa.string(),
    "grid_frames": pa.int32(),
    "grid_height": pa.int32(),
    "grid_width": pa.int32(),
    "tokens_before": pa.int64(),
    "tokens_after": pa.int64(),
    "keep_ratio": pa.float64(),
    "anchor_frame": pa.int32(),
    "nested": pa.bool_(),
    "hidden_size": pa.int32(),
    "num_deepstack": pa.int32(),
    "dtype": pa.string(),
    "encoding": pa.string(),
    "next_position": pa.int64(),
    "decode_seconds": pa.float64(),
    "encode_seconds": pa.float64(),
    "fuse_seconds": pa.float64(),
    "size_bytes": pa.int64(),
    "modified_ns": pa.int64(),
    "content_sha256": pa.string(),
    "key": pa.string(),
    "fingerprint": pa.string(),
    "format_version": pa.int32(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
    "head_digest": pa.uint64(),
    "layout": _LAYOUT_TYPE,
    "writer": pa.string(),
    "created_ns": pa.int64(),
}

INDEX_SCHEMA = pa.schema(list(_COLUMNS.items()))
"""Columns of ``index/*.parquet``, in order; further manifest columns follow them."""

ADDED_COLUMNS = ("video_stream", "num_rescaled_frames")
"""Columns that fragments of earlier builds lack: they are read as null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """A committed video or a recorded failure.

    A failed row has ``error_kind`` and ``error_message`` and leaves what it never learnt as None.
    ``key`` is the sha256 of content, fingerprint and decoder: equal keys mean equal features.
    ``head_digest`` is the xxh3_64 of the bytes before the features.
    """

    video_id: str
    path: str
    status: str
    fingerprint: str
    size_bytes: int
    modified_ns: int
    created_ns: int
    writer: str
    attempts: int = 1
    format_version: int = FORMAT_VERSION
    error_kind: str | None = None
    error_message: str | None = None
    duration_seconds: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    container: str | None = None
    video_stream: int | None = None
    codec: str | None = None
    num_source_frames: int | None = None
    num_frames: int | None = None
    num_bad_packets: int | None = None
    num_rescaled_frames: int | None = None
    decoder: str | None = None
    decoder_version: str | None = None
    grid_frames: int | None = None
    grid_height: int | None = None
    grid_width: int | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    keep_ratio: float | None = None
    anchor_frame: int | None = None
    nested: bool | None = None
    hidden_size: int | None = None
    num_deepstack: int | None = None
    dtype: str | None = None
    next_position: int | None = None
    decode_seconds: float | None = None
    encode_seconds: float | None = None
    fuse_seconds: float | None = None
    content_sha256: str | None = None
    key: str | None = None
    shard: str | None = None
    offset: int | None = None
    num_bytes: int | None = None
    head_digest: int | None = None
    layout: RecordLayout | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise IndexCorruptError(
                f"video {self.video_id!r}: status {self.status!r}, expected one of {STATUSES}"
            )
        if self.status != "ok":
            return
        missing = [
            name
            for name in (
                *("key", "shard", "offset", "num_bytes", "head_digest", "layout"),
                "next_position",
            )
            if getattr(self, name) is None
        ]
        if missing:
            raise IndexCorruptError(f"video {self.video_id!r}: committed row lacks {missing}")
        if not DIGEST_NAME.fullmatch(self.shard or ""):
            raise ShardNameError(
                f"video {self.video_id!r}: shard name {self.shard!r} is not a sha256 digest"
            )
        self._check_layout()

    def _check_layout(self) -> None:
        assert self.layout is not None
        rows, length = self.layout.num_rows, self.layout.num_bytes
        sides = (self.grid_frames, self.grid_height, self.grid_width)
        if self.num_bytes != length or rows != self.tokens_after:
            raise ShapeError(
                f"video {self.video_id!r}: the layout holds {rows} rows in {length} bytes, "
                f"the row says {self.tokens_after} in {self.num_bytes}"
            )
        if None in sides:
            raise ShapeError(f"video {self.video_id!r}: the grid has sides {sides}")
        self._check_rows(self.layout)
        if self.layout["match"].shape != (self.grid.num_tokens,):
            raise ShapeError(
                f"video {self.video_id!r}: match has shape {self.layout['match'].shape}, "
                f"the grid {self.grid} holds {self.grid.num_tokens} tokens"
            )

    def _check_rows(self, layout: RecordLayout) -> None:
        if self.dtype not in FEATURE_DTYPES:
            raise DtypeError(
                f"video {self.video_id!r}: features of type {self.dtype!r}, expected one of "
                f"{FEATURE_DTYPES}"
            )
        widths = {
            "none": {"features": (self.row_width, self.dtype)},
            "zstd": {},  # its frames say nothing of the width; readers compare their sizes with it
            "fp8": {
                "features": (self.row_width, "F8_E4M3"),
                "scale": (1 + (self.num_deepstack or 0), "F32"),
            },
        }
        for name, (width, dtype) in widths[layout.encoding].items():
            spec = layout[name]
            if width < 1 or (spec.shape[1], spec.dtype) != (width, dtype):
                raise ShapeError(
                    f"video {self.video_id!r}: {name} has rows of {spec.shape[1]} {spec.dtype}, "
                    f"expected {width} {dtype}"
                )

    @property
    def encoding(self) -> str | None:
        """How the feature rows of a committed video are stored, as its layout tells."""
        return self.layout.encoding if self.layout is not None else None

    @property
    def row_width(self) -> int:
        """``(1+S)*D``, the values of one feature row."""
        return (self.hidden_size or 0) * (1 + (self.num_deepstack or 0))

    @property
    def grid(self) -> TokenGrid:
        """The merged token grid of a committed video."""
        return TokenGrid(self.grid_frames or 0, self.grid_height or 0, self.grid_width or 0)

    def to_record(self) -> dict[str, Any]:
        """A plain dict for pyarrow, further columns last."""
        record = {name: getattr(self, name) for name in _COLUMNS}
        if self.layout is not None:
            record["layout"] = [dataclasses.asdict(spec) for spec in self.layout]
        return {**record, **self.extra}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of ``to_record``.

        Raises:
            IndexCorruptError: a column is missing or a value does not fit.
        """
        try:
            values = {name: record[name] for name in _COLUMNS}
            encoding = values.pop("encoding")
            if values["layout"] is not None:
                values["layout"] = RecordLayout(
                    tuple(
                        TensorSpec(t["name"], t["dtype"], tuple(t["shape"]), t["offset"])
                        for t in values["layout"]
                    )
                )
            extra = {name: value for name, value in record.items() if name not in _COLUMNS}
            row = cls(**values, extra=extra)
        except (KeyError, TypeError) as error:
            raise IndexCorruptError(f"an index row cannot be read: {error!r}") from error
        if encoding != row.encoding:
            raise IndexCorruptError(
                f"video {row.video_id!r}: the row says encoding {encoding!r}, its layout is of "
                f"{row.encoding!r}"
            )
        return row
