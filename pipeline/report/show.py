"""One cached video in text: its index row, and which tokens of each frame are kept."""

import numpy as np
import numpy.typing as npt

from pipeline.cache import CachedVideo, open_cache
from pipeline.storage import Location
from schemas.fusion import FusionConfig
from schemas.index import IndexRow

FIELDS = (
    "video_id",
    "path",
    "status",
    "error_kind",
    "error_message",
    "attempts",
    "duration_seconds",
    "fps",
    "width",
    "height",
    "container",
    "video_stream",
    "codec",
    "num_source_frames",
    "num_frames",
    "num_bad_packets",
    "num_rescaled_frames",
    "decoder",
    "decoder_version",
    "tokens_before",
    "tokens_after",
    "keep_ratio",
    "anchor_frame",
    "hidden_size",
    "num_deepstack",
    "dtype",
    "num_bytes",
    "decode_seconds",
    "encode_seconds",
    "fuse_seconds",
    "key",
)

BAR = 40


def describe_video(location: Location, video_id: str, *, with_map: bool = False) -> str:
    """Lines about one video; a failed one shows why.

    Args:
        location: of the cache, as ``open_cache`` takes it.
        video_id: as in the index.
        with_map: draw each frame's grid, ``#`` kept and ``.`` fused.

    Raises:
        VideoNotCachedError: no such video.
    """
    cache = open_cache(location)
    row = cache.row(video_id)
    lines = [f"{name:18} {_text(value)}" for name, value in _fields(row, cache.manifest.fusion)]
    if row.status == "ok":
        lines += ["", *_frame_lines(cache.load(video_id), with_map=with_map)]
    return "\n".join(lines)


def _fields(row: IndexRow, fusion: FusionConfig) -> list[tuple[str, object]]:
    known = [(name, getattr(row, name)) for name in FIELDS if getattr(row, name) is not None]
    if row.status == "ok":
        known.insert(-1, ("grid", row.grid))
        known.insert(-1, ("fusion", fusion))
    return [*known, *row.extra.items()]


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _frame_lines(video: CachedVideo, *, with_map: bool) -> list[str]:
    grid = video.grid
    kept_THW = np.zeros((grid.frames, grid.height, grid.width), dtype=np.bool_)
    t, y, x = video.coordinates.numpy().T
    kept_THW[t, y, x] = True
    lines = ["frame  kept  of its tokens"]
    for frame, kept_HW in enumerate(kept_THW):
        count = int(kept_HW.sum())
        bar = "#" * round(BAR * count / grid.tokens_per_frame)
        mark = "  anchor" if frame == video.row.anchor_frame else ""
        lines.append(f"{frame:5}  {count:4}  {bar:{BAR}}{mark}")
        if with_map:
            lines += _map(kept_HW)
    return lines


def _map(kept_HW: npt.NDArray[np.bool_]) -> list[str]:
    return ["             " + "".join("#" if kept else "." for kept in row) for row in kept_HW]
