"""Reading rows that are stored with encoding "zstd"."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.storage import RangeReader
from pipeline.store.reader import MEND, VideoReader
from pipeline.store.shuffled_zstd import check_frame_end, decompress_frame, prefix_bytes
from schemas.errors import BoundsError, CacheCorruptError
from schemas.index import IndexRow
from schemas.tokens import FRAME_ROWS, ITEM_BYTES, RecordLayout


class CompressedReader(VideoReader):
    """A video whose rows lie in frames; of a part of its rows the last frame is read whole.

    Where a frame ends is known once the head is read: only all rows can come along with it.
    """

    def __init__(
        self, source: RangeReader, row: IndexRow, layout: RecordLayout, where: str, num_rows: int
    ) -> None:
        with_head = num_rows if num_rows == layout.num_rows else 0
        super().__init__(source, row, layout, where, with_head)
        self._ends = self._checked_ends()

    @property
    def row_bytes(self) -> int:
        """Bytes of one feature row, decompressed."""
        return self.row.row_width * self._item_bytes

    @property
    def _item_bytes(self) -> int:
        return ITEM_BYTES[str(self.row.dtype)]

    def _prefix_bytes(self, num_rows: int) -> int:
        return prefix_bytes(self._ends, num_rows)

    def _fill_rows(self, places: npt.NDArray[np.int64], out: memoryview) -> None:
        """Read frame by frame; each is decompressed, verified and put in place by itself."""
        num_rows, width = len(places), self.row.row_width
        values = np.frombuffer(out, f"<u{self._item_bytes}", count=num_rows * width)
        values = values.reshape(num_rows, width)
        digests = self.head.row_digest[:num_rows].tolist()
        ends = self._ends[: -(-num_rows // FRAME_ROWS)]
        buffer = memoryview(bytearray(int(np.diff(ends, prepend=0).max())))
        for frame, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
            here = slice(frame * FRAME_ROWS, (frame + 1) * FRAME_ROWS)
            data = buffer[: end - start]
            self._fill([data], self._features.offset + start)
            decompressed = self._decompressed(here.start, data)[: len(places[here])]
            rows = [row.data for row in decompressed]
            if list(map(xxhash.xxh3_64_intdigest, rows)) != digests[here]:
                raise self._bad_row(here.start, rows, digests[here])
            values[places[here]] = decompressed

    def _decompressed(self, first: int, data: memoryview) -> npt.NDArray[np.unsignedinteger]:
        held = min(FRAME_ROWS, self._layout.num_rows - first)
        try:
            return decompress_frame(
                data, num_rows=held, row_bytes=self.row_bytes, item_bytes=self._item_bytes
            )
        except CacheCorruptError as error:
            raise type(error)(
                f"{self._where()}: feature rows {first} to {first + held - 1}: {error}. {MEND}"
            ) from error

    def _checked_ends(self) -> npt.NDArray[np.int64]:
        """``frame_end``, once it is known to bound what is read and what memory that takes."""
        ends, num_bytes = self.head.frame_end, self._features.num_bytes
        assert ends is not None, "a layout of encoding zstd has the tensor frame_end"
        try:
            check_frame_end(
                ends,
                num_stored=self._layout.num_rows,
                row_bytes=self.row_bytes,
                item_bytes=self._item_bytes,
            )
        except CacheCorruptError as error:
            raise type(error)(f"{self._where()}: {error}. {MEND}") from error
        if ends[-1] != num_bytes:
            raise BoundsError(
                f"{self._where()}: the last frame ends at byte {ends[-1]} of {num_bytes}. {MEND}"
            )
        return ends
