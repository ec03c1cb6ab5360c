"""The parts of an index: loose rows, which are read, and bucket fragments, which are listed.

And what counts when both are set beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage
from pipeline.store.fragment import NUM_BUCKETS, fragment_names, named_bucket, read_fragment
from pipeline.store.index import MAX_LISTINGS, scan_names, vanishing
from pipeline.store.loose import LooseRows
from pipeline.store.merge import Fragment


@dataclass(frozen=True, eq=False)
class IndexParts:
    """``buckets`` names the one fragment of each bucket; all other ``fragments`` were read."""

    fragments: Sequence[Fragment]
    buckets: Mapping[int, str]

    @property
    def has_loose(self) -> bool:
        """Whether any row is loose."""
        return any(fragment.table.num_rows for fragment in self.fragments)

    @cached_property
    def loose(self) -> LooseRows:
        """The rows of ``fragments``."""
        return LooseRows(self.fragments)


def read_parts(storage: Storage, columns: list[str] | None = None) -> IndexParts:
    """Read what is loose and list the rest.

    A bucket that has several fragments, since a compaction goes on or was killed, is read with
    what is loose. Bucket fragments are not opened, so here is more to see to than in
    ``scan_names``: two listings must show the same of them. One that a listing missed because it
    was just replaced is in the next.

    Args:
        storage: where the cache lies.
        columns: what is read of loose rows, with ``MERGE_COLUMNS``; None reads all columns.

    Raises:
        IndexCorruptError: a fragment cannot be read, or what is listed is gone again and again.
    """
    found: dict[str, Fragment] = {}
    listed: set[str] | None = None
    for _ in range(MAX_LISTINGS):
        buckets = single_buckets(fragment_names(storage))
        lazy = set(buckets.values())
        read = partial(read_fragment, storage, columns=columns)
        tables, damage = scan_names(storage, read, known=lazy | found.keys())
        if damage:
            raise next(iter(damage.values()))
        found |= {name: Fragment(name, table) for name, table in tables.items()}
        if lazy == listed:
            return IndexParts([found[name] for name in sorted(found.keys() - lazy)], buckets)
        listed = lazy
    raise vanishing(storage)


def bucket_winners(
    storage: Storage, parts: IndexParts, bucket: int, columns: list[str] | None = None
) -> pa.Table:
    """The rows of one bucket that count, loose ones among them, in any order.

    Args:
        storage: where the cache lies.
        parts: of its index.
        bucket: 0 to 255.
        columns: of the index, with ``MERGE_COLUMNS``; None for all there are.

    Raises:
        FileNotFoundError: the bucket's fragment is gone since it was listed.
        IndexCorruptError: it cannot be read.
    """
    theirs = None
    if bucket in parts.buckets:
        name = parts.buckets[bucket]
        theirs = read_fragment(storage, name, columns)
    return parts.loose.settle(parts.loose.in_bucket(bucket), theirs, columns=columns).winners


def loose_winners(storage: Storage, parts: IndexParts) -> Iterator[pa.Table]:
    """The rows that count of all videos that have loose rows, bucket by bucket.

    Raises:
        FileNotFoundError: a bucket's fragment is gone since it was listed.
        IndexCorruptError: one cannot be read.
    """
    for bucket in range(NUM_BUCKETS):
        places = parts.loose.in_bucket(bucket)
        if len(places):
            mine = parts.loose.table["video_id"].take(pa.array(places)).combine_chunks()
            theirs = _rows_in_bucket(storage, parts, bucket, mine)
            yield parts.loose.settle(places, theirs).winners


def _rows_in_bucket(
    storage: Storage, parts: IndexParts, bucket: int, ids: pa.Array
) -> pa.Table | None:
    """The rows of the videos ``ids`` in their bucket's fragment, read whole only if it has some."""
    if bucket not in parts.buckets:
        return None
    name = parts.buckets[bucket]
    theirs = read_fragment(storage, name, ["video_id"])["video_id"]
    if not pc.any(pc.is_in(theirs, value_set=ids)).as_py():
        return None
    table = read_fragment(storage, name)
    return table.filter(pc.is_in(table["video_id"], value_set=ids))


def single_buckets(names: list[str]) -> dict[int, str]:
    """The fragment of each bucket that has exactly one."""
    found: dict[int, str] = {}
    several = set()
    for name in names:
        bucket = named_bucket(name)
        if bucket is not None and found.setdefault(bucket, name) != name:
            several.add(bucket)
    return {bucket: name for bucket, name in found.items() if bucket not in several}
