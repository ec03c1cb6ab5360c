"""The bytes of a shard that a row stands for: where they lie, and whether that can be so."""

import errno

from pipeline.storage import is_outage
from schemas.errors import (
    BoundsError,
    CacheError,
    CacheUnreachableError,
    FingerprintError,
    FormatVersionError,
    ShapeError,
    ShardMissingError,
    ShardNameError,
)
from schemas.index import DIGEST_NAME, FORMAT_VERSION, IndexRow
from schemas.tokens import ALIGNMENT_BYTES, RecordLayout


def checked_layout(row: IndexRow, fingerprint: str) -> RecordLayout:
    """The layout of a committed video, once its row is known to be one that can be read.

    Args:
        row: a row with status "ok".
        fingerprint: that of the cache's manifest.

    Raises:
        FormatVersionError: the row has another format version.
        FingerprintError: the row belongs to another configuration.
        ShardNameError: the shard name is not a digest.
        BoundsError: the bytes do not begin where a video's can.
        ShapeError: the row describes no feature row.
    """
    if row.format_version != FORMAT_VERSION:
        raise FormatVersionError(
            f"video {row.video_id!r} has format version {row.format_version}; this tokenreel "
            f"reads {FORMAT_VERSION}. Read it with the version that wrote it ({row.writer})."
        )
    if row.fingerprint != fingerprint:
        raise FingerprintError(
            f"video {row.video_id!r} was encoded with configuration {row.fingerprint!r}, this "
            f"cache has {fingerprint!r}. Its fragment belongs to another cache; move it away."
        )
    if not DIGEST_NAME.fullmatch(row.shard or ""):
        raise ShardNameError(
            f"video {row.video_id!r}: shard name {row.shard!r} is not a sha256 digest"
        )
    offset = row.offset if row.offset is not None else -1
    if offset < 8 or offset % ALIGNMENT_BYTES:
        raise BoundsError(
            f"video {row.video_id!r}: its bytes begin at {offset}, expected a multiple of "
            f"{ALIGNMENT_BYTES}"
        )
    if row.layout is None or row.layout["features"].num_bytes == 0:
        raise ShapeError(f"video {row.video_id!r}: the row describes no feature row")
    return row.layout


def bytes_up_to(layout: RecordLayout, num_rows: int) -> int:
    """Bytes of a video's range up to the end of its first ``num_rows`` feature rows.

    Where a part of compressed rows ends only the head tells: of those it is all rows or none.
    """
    features = layout["features"]
    if layout.encoding == "zstd":
        return layout.num_bytes if num_rows == layout.num_rows else layout.head_bytes
    return layout.head_bytes + num_rows * (features.num_bytes // features.shape[0])


def cannot_open(row: IndexRow, where: str, error: OSError) -> CacheError:
    """The error of a shard ``where`` that ``error`` kept from being opened: lost, or an outage."""
    if is_outage(error):
        return CacheUnreachableError(
            f"video {row.video_id!r}: shard {where} cannot be opened now: {error.strerror or error}"
        )
    reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
    return ShardMissingError(
        f"video {row.video_id!r}: shard {where} cannot be opened: {reason}. "
        "Copy the whole cache, or encode the video again."
    )
