"""Reading one video out of its shard: only the bytes needed, straight into place, all verified."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.storage import RangeReader, Storage
from pipeline.store.extent import bytes_up_to, cannot_open, checked_layout
from pipeline.store.head import Head
from pipeline.store.shard import shard_file
from schemas.errors import (
    BoundsError,
    CacheCorruptError,
    CacheError,
    CacheUnreachableError,
    ChecksumError,
    ShortReadError,
)
from schemas.index import IndexRow
from schemas.tokens import RecordLayout, TensorSpec

MAX_BUFFERS = 1024
"""Most destinations one ``preadv`` takes (IOV_MAX)."""

BATCH_BYTES = 2**19
"""Read this much, then verify it while it is in the processor's cache."""


class VideoReader:
    """One committed video of an open shard. Use ``open_video``; not safe to share by threads.

    Rows lie side by side, as features or as "fp8" codes; ``CompressedReader`` reads frames.

    Attributes:
        row: the video's index row.
        head: its small tensors, verified.
        bytes_read: bytes read from the shard so far.
    """

    def __init__(
        self, source: RangeReader, row: IndexRow, layout: RecordLayout, where: str, num_rows: int
    ) -> None:
        self._source = source
        self._place = where
        self._layout = layout
        self._features: TensorSpec = layout["features"]
        self.row = row
        self.bytes_read = 0
        self._announce(0, bytes_up_to(layout, num_rows))
        self.head = self._read_head()
        self._num_announced = num_rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as ``read_rows`` gives it: features, or the codes of "fp8"."""
        return self._features.num_bytes // self._features.shape[0]

    def expect_rows(self, num_rows: int) -> None:
        """Say how many rows will be read, before memory is taken for them.

        Raises:
            BoundsError: the file ends before them.
            ShortReadError: they cannot be fetched.
        """
        if num_rows > self._num_announced:
            self._announce(self._features.offset, self._prefix_bytes(num_rows))
            self._num_announced = num_rows

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
        order = np.argsort(self.head.prompt_index[:num_rows])
        places = np.empty(num_rows, dtype=np.int64)
        places[order] = np.arange(num_rows)
        self._fill_rows(places, out)
        return order

    def _prefix_bytes(self, num_rows: int) -> int:
        """Bytes of the shard that hold the first rows."""
        return num_rows * self.row_bytes

    def _fill_rows(self, places: npt.NDArray[np.int64], out: memoryview) -> None:
        """Read as many rows as there are places, each into its own, and verify them."""
        num_rows, size = len(places), self.row_bytes
        starts = (places * size).tolist()
        digests = self.head.row_digest[:num_rows].tolist()
        digest_of = xxhash.xxh3_64_intdigest
        step = min(MAX_BUFFERS, max(1, BATCH_BYTES // size))
        for first in range(0, num_rows, step):
            rows = [out[start : start + size] for start in starts[first : first + step]]
            self._fill(rows, self._features.offset + first * size)
            if [digest_of(row) for row in rows] != digests[first : first + step]:
                raise self._bad_row(first, rows, digests[first : first + step])

    def _announce(self, offset: int, num_bytes: int) -> None:
        """Announce bytes of the video's range; nothing is allocated before the file has them."""
        begin = self.row.offset or 0
        try:
            self._source.announce(begin + offset, num_bytes)
        except FileNotFoundError as error:
            raise cannot_open(self.row, self._place, error) from error
        except OSError as error:
            raise self._unreadable(begin + offset, error) from error
        last, end = begin + self._layout.num_bytes, self._source.end
        if end is not None and last > end:
            raise BoundsError(
                f"{self._where()}: bytes {begin} to {last}, the file has {end}. {MEND}"
            )

    def _read_head(self) -> Head:
        data = bytearray(self._layout.head_bytes)
        self._fill([memoryview(data)], 0)
        found = xxhash.xxh3_64_intdigest(data)
        if found != self.row.head_digest:
            raise ChecksumError(
                f"{self._where()}: the head has digest {found:016x}, the index says "
                f"{self.row.head_digest:016x}. {MEND}"
            )
        try:
            return Head.from_bytes(data, self._layout)
        except CacheCorruptError as error:
            raise type(error)(f"{self._where()}: {error}") from error

    def _fill(self, buffers: list[memoryview], offset: int) -> None:
        """Fill ``buffers``, equally long, in turn from ``offset`` of the video's range on."""
        position = (self.row.offset or 0) + offset
        missing = len(buffers) * len(buffers[0])
        while True:
            try:
                count = self._source.fill(buffers, position)
            except OSError as error:
                raise self._unreadable(position, error) from error
            self.bytes_read += count
            missing -= count
            if not missing:
                return
            if not count:
                raise ShortReadError(
                    f"{self._where()}: the file ends at byte {position}, {missing} bytes early. "
                    f"{MEND}"
                )
            position += count
            buffers = unfilled(buffers, count)

    def _unreadable(self, position: int, error: OSError) -> CacheError:
        return CacheUnreachableError(
            f"{self._where()}: byte {position} cannot be read now: {error.strerror or error}"
        )

    def _bad_row(
        self, first: int, rows: Sequence[memoryview], digests: Sequence[int]
    ) -> ChecksumError:
        found = [xxhash.xxh3_64_intdigest(row) for row in rows]
        bad = next(i for i in range(len(rows)) if found[i] != digests[i])
        return ChecksumError(
            f"{self._where()}: feature row {first + bad} has digest {found[bad]:016x}, "
            f"expected {digests[bad]:016x}. {MEND}"
        )

    def _where(self) -> str:
        return f"video {self.row.video_id!r} in {self._place}"


MEND = "Take it out of service with `tokenreel verify CACHE --discard`, then build again."


@contextmanager
def open_video(
    storage: Storage, row: IndexRow, *, fingerprint: str, num_rows: int = 0
) -> Iterator[VideoReader]:
    """Open the shard of a committed video and read its head, with every check made.

    Args:
        storage: where the cache lies.
        row: a row with status "ok".
        fingerprint: that of the cache's manifest.
        num_rows: feature rows that will be read, as far as known: on an object store they come
            with the head, in one request; a part of compressed rows in a second one.

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
    layout = checked_layout(row, fingerprint)
    name = shard_file(row.shard or "")
    where = storage.where(name)
    with ExitStack() as stack:
        try:
            source = stack.enter_context(storage.open_range(name))
        except OSError as error:
            raise cannot_open(row, where, error) from error
        yield _reader_type(layout.encoding)(source, row, layout, where, num_rows)


def _reader_type(encoding: str) -> type[VideoReader]:
    if encoding != "zstd":
        return VideoReader
    from pipeline.store.compressed_reader import CompressedReader

    return CompressedReader


def prefetch_video(storage: Storage, row: IndexRow, *, fingerprint: str, num_rows: int) -> None:
    """Begin to fetch what ``open_video`` will read with the same arguments.

    Raises:
        CacheCorruptError: a row that ``open_video`` would refuse unread.
    """
    layout = checked_layout(row, fingerprint)
    name = shard_file(row.shard or "")
    storage.prefetch(name, row.offset or 0, bytes_up_to(layout, num_rows))


def unfilled(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What remains of ``buffers`` once their first ``count`` bytes are filled."""
    remaining = list(buffers)
    while remaining and count >= len(remaining[0]):
        count -= len(remaining.pop(0))
    if count:
        remaining[0] = remaining[0][count:]
    return remaining
