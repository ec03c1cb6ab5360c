"""Reading one video out of its shard: only the bytes needed, straight into place, all verified."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.store.head import Head
from pipeline.store.shard import shard_path
from schemas.errors import (
    BoundsError,
    CacheCorruptError,
    ChecksumError,
    FingerprintError,
    FormatVersionError,
    ShapeError,
    ShardMissingError,
    ShardNameError,
    ShortReadError,
)
from schemas.index import DIGEST_NAME, FORMAT_VERSION, IndexRow
from schemas.tokens import ALIGNMENT_BYTES, RecordLayout, TensorSpec

MAX_BUFFERS = 1024
"""Most destinations one ``preadv`` takes (IOV_MAX)."""

BATCH_BYTES = 2**19
"""Read this much, then verify it while it is in the processor's cache."""


class VideoReader:
    """One committed video of an open shard. Use ``open_video``; not safe to share by threads.

    Attributes:
        row: the video's index row.
        head: its small tensors, verified.
        bytes_read: bytes read from the shard so far.
    """

    def __init__(self, handle: int, row: IndexRow, layout: RecordLayout, path: Path) -> None:
        self._handle = handle
        self._path = path
        self._features: TensorSpec = layout["features"]
        self.row = row
        self.bytes_read = 0
        self.head = self._read_head(layout)

    @property
    def row_bytes(self) -> int:
        """Bytes of one feature row."""
        return self._features.num_bytes // self._features.shape[0]

    def read_rows(self, num_rows: int, out: memoryview) -> npt.NDArray[np.int64]:
        """Read the first ``num_rows`` stored rows into ``out``, in prompt order.

        Each row goes from the file to its place at once; its digest is checked right after.

        Args:
            num_rows: 1 to the number of stored rows.
            out: at least ``num_rows * row_bytes`` writable bytes. After an error its content is
                worthless.

        Returns:
            ``(num_rows,)`` int64: the storage row at each place of the prompt.

        Raises:
            ShortReadError: the file ends early.
            ChecksumError: a row is not the one written.
        """
        size = self.row_bytes
        order = np.argsort(self.head.prompt_index[:num_rows])
        places = np.empty(num_rows, dtype=np.int64)
        places[order] = np.arange(num_rows)
        starts = (places * size).tolist()
        digests = self.head.row_digest[:num_rows].tolist()
        digest_of = xxhash.xxh3_64_intdigest
        step = min(MAX_BUFFERS, max(1, BATCH_BYTES // size))
        for first in range(0, num_rows, step):
            rows = [out[start : start + size] for start in starts[first : first + step]]
            self._fill(rows, self._features.offset + first * size)
            if [digest_of(row) for row in rows] != digests[first : first + step]:
                raise self._bad_row(first, rows, digests[first : first + step])
        return order

    def _read_head(self, layout: RecordLayout) -> Head:
        data = bytearray(layout.head_bytes)
        self._fill([memoryview(data)], 0)
        found = xxhash.xxh3_64_intdigest(data)
        if found != self.row.head_digest:
            raise ChecksumError(
                f"{self._where()}: the head has digest {found:016x}, the index says "
                f"{self.row.head_digest:016x}. {_MEND}"
            )
        try:
            return Head.from_bytes(data, layout)
        except CacheCorruptError as error:
            raise type(error)(f"{self._where()}: {error}") from error

    def _fill(self, buffers: list[memoryview], offset: int) -> None:
        """Fill ``buffers``, equally long, in turn from ``offset`` of the video's range on."""
        position = (self.row.offset or 0) + offset
        missing = len(buffers) * len(buffers[0])
        while True:
            try:
                count = os.preadv(self._handle, buffers, position)
            except OSError as error:
                raise ShortReadError(
                    f"{self._where()}: byte {position} cannot be read: {error.strerror}. {_MEND}"
                ) from error
            self.bytes_read += count
            missing -= count
            if not missing:
                return
            if not count:
                raise ShortReadError(
                    f"{self._where()}: the file ends at byte {position}, {missing} bytes early. "
                    f"{_MEND}"
                )
            position += count
            buffers = unfilled(buffers, count)

    def _bad_row(
        self, first: int, rows: Sequence[memoryview], digests: Sequence[int]
    ) -> ChecksumError:
        found = [xxhash.xxh3_64_intdigest(row) for row in rows]
        bad = next(i for i in range(len(rows)) if found[i] != digests[i])
        return ChecksumError(
            f"{self._where()}: feature row {first + bad} has digest {found[bad]:016x}, "
            f"expected {digests[bad]:016x}. {_MEND}"
        )

    def _where(self) -> str:
        return f"video {self.row.video_id!r} in {self._path}"


_MEND = "Find all damage with `tokenreel verify`, then encode those videos again."


@contextmanager
def open_video(root: Path, row: IndexRow, *, fingerprint: str) -> Iterator[VideoReader]:
    """Open the shard of a committed video and read its head, with every check made.

    Args:
        root: the cache folder.
        row: a row with status "ok".
        fingerprint: that of the cache's manifest.

    Raises:
        FormatVersionError: the row has another format version.
        FingerprintError: the row belongs to another configuration.
        ShardNameError: the shard name is not a digest.
        ShardMissingError: the shard is not there, or is not a regular file.
        BoundsError: the byte range does not fit the file, or an index its range.
        ShapeError: tensors that contradict the row.
        ShortReadError: the file ends early.
        ChecksumError: the head is not the one written.
    """
    layout = _checked_layout(row, fingerprint)
    path = shard_path(root, row.shard or "")
    handle = _open_regular(path, row)
    try:
        _check_bounds(os.fstat(handle).st_size, row, layout, path)
        yield VideoReader(handle, row, layout, path)
    finally:
        os.close(handle)


def _checked_layout(row: IndexRow, fingerprint: str) -> RecordLayout:
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
    if row.layout is None or row.layout["features"].num_bytes == 0:
        raise ShapeError(f"video {row.video_id!r}: the row describes no feature row")
    return row.layout


def _open_regular(path: Path, row: IndexRow) -> int:
    """Open without following a link and without waiting for a pipe's other end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ShardMissingError(
            f"video {row.video_id!r}: shard {path} cannot be opened: {reason}. "
            "Copy the whole cache folder, or encode the video again."
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ShardMissingError(f"video {row.video_id!r}: shard {path} is not a regular file")
    return handle


def _check_bounds(size: int, row: IndexRow, layout: RecordLayout, path: Path) -> None:
    """Raise unless the range lies in the file; nothing is allocated before this holds."""
    offset = row.offset if row.offset is not None else -1
    if offset < 8 or offset % ALIGNMENT_BYTES or offset + layout.num_bytes > size:
        raise BoundsError(
            f"video {row.video_id!r}: bytes {offset} to {offset + layout.num_bytes} of {path}, "
            f"expected a multiple of {ALIGNMENT_BYTES} and an end within its {size} bytes. {_MEND}"
        )


def unfilled(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What remains of ``buffers`` once their first ``count`` bytes are filled."""
    remaining = list(buffers)
    while remaining and count >= len(remaining[0]):
        count -= len(remaining.pop(0))
    if count:
        remaining[0] = remaining[0][count:]
    return remaining
