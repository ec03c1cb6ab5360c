"""Loose rows: what stands in no bucket fragment yet, held in memory and set beside the buckets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.fragment import NUM_BUCKETS, buckets_of
from pipeline.store.merge import Fragment, Places, join_tables, judge_rows


@dataclass(frozen=True, slots=True, eq=False)
class SettledRows:
    """``winners``, one row per video in any order, and the ``witnesses`` as in ``JoinedRows``."""

    winners: pa.Table
    witnesses: pa.Table


class LooseRows:
    """The rows of some fragments in one ``table``.

    Args:
        fragments: all with every column, or all with the same few columns of the index.
    """

    def __init__(self, fragments: Sequence[Fragment]) -> None:
        # Rows are taken again and again, which in a table of many chunks costs as much as they are.
        self.table = join_tables([fragment.table for fragment in fragments]).combine_chunks()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def everywhere(self) -> Places:
        """The places of all rows."""
        return np.arange(len(self), dtype=np.uint64)

    def in_bucket(self, bucket: int) -> Places:
        """The places of the rows of one bucket.

        Raises:
            UnicodeDecodeError: an id is not valid UTF-8.
        """
        order, begins = self._by_bucket
        return order[begins[bucket] : begins[bucket + 1]]

    def of_video(self, video_id: str) -> Places:
        """The places of the rows of one video."""
        ids, order = self._by_id
        rows = range(len(ids))
        begin = bisect_left(rows, video_id, key=lambda row: ids[row].as_py())
        end = bisect_right(rows, video_id, lo=begin, key=lambda row: ids[row].as_py())
        return order[begin:end]

    def rows(self, places: Places, columns: list[str] | None = None) -> pa.Table:
        """The rows at ``places``, with all columns or some."""
        table = self.table if columns is None else self.table.select(columns)
        return table if len(places) == len(self) else table.take(pa.array(places, pa.uint64()))

    def settle(
        self, places: Places, theirs: pa.Table | None = None, *, columns: list[str] | None = None
    ) -> SettledRows:
        """What counts of the rows at ``places`` and of ``theirs``, by ``merge_tables``'s rule.

        Only videos with several rows are judged, so that much memory is needed for few.

        Args:
            places: ascending.
            theirs: rows of a bucket's fragment, with the same columns.
            columns: of the index, with ``MERGE_COLUMNS``; None for all there are.
        """
        mine = self.rows(places, columns)
        parts = [mine] if theirs is None else [mine, theirs]
        disputed = _repeated([part["video_id"] for part in parts])
        if not len(disputed):
            return SettledRows(join_tables(parts), mine.slice(0, 0))
        is_disputed = [_is_in(part["video_id"], disputed) for part in parts]
        judged = judge_rows(
            [part.filter(pa.array(known)) for part, known in zip(parts, is_disputed, strict=True)]
        )
        winners = judged.table.take(pa.array(judged.winners))
        undisputed = [
            part.filter(pa.array(~known)) for part, known in zip(parts, is_disputed, strict=True)
        ]
        witnesses = judged.table.take(pa.array(judged.witnesses))
        return SettledRows(join_tables([*undisputed, winners]), witnesses)

    @cached_property
    def _by_bucket(self) -> tuple[Places, npt.NDArray[np.int64]]:
        buckets = buckets_of(self.table["video_id"])
        order = np.argsort(buckets, kind="stable").astype(np.uint64)
        return order, np.searchsorted(buckets[order], np.arange(NUM_BUCKETS + 1))

    @cached_property
    def _by_id(self) -> tuple[pa.ChunkedArray, Places]:
        order = pc.sort_indices(self.table["video_id"])
        return self.table["video_id"].take(order), order.to_numpy()


def _repeated(ids: Sequence[pa.ChunkedArray]) -> pa.Array:
    """The ids that occur more than once."""
    every = pa.chunked_array([chunk for part in ids for chunk in part.chunks], pa.string())
    counts = pc.value_counts(every)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _is_in(ids: pa.ChunkedArray, wanted: pa.Array) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = pc.is_in(ids, value_set=wanted).to_numpy()
    return found
