"""Compaction of a large index: bucket by bucket, so that memory is bounded by few rows.

What docs/decisions/compaction.md says of merging holds here too. A bucket's new fragment is
committed before its old one goes, and loose fragments go last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage
from pipeline.store.fragment import (
    NUM_BUCKETS,
    FragmentHead,
    buckets_of,
    read_fragment,
)
from pipeline.store.handover import begin_grace, publish_fragment, retire_fragments
from pipeline.store.loose import LooseRows
from pipeline.store.merge import MERGE_COLUMNS, Fragment, join_tables
from pipeline.store.parts import single_buckets

ROWS_AT_ONCE = 1_000_000
"""Loose rows in memory at once; of more, some buckets' rows are read at a time."""

_NUM_READERS = 4


@dataclass(eq=False)
class BucketMerge:
    """What a compaction in buckets will do; counts and shards as ``CompactReport`` has them.

    Of the fragments ``heads``, the rows of the buckets ``touched`` are written anew, with the
    columns of ``schema``, and the fragments ``replaced`` go. ``bucket_names`` holds the one
    fragment of each bucket that has one.
    """

    heads: Mapping[str, FragmentHead]
    bucket_names: Mapping[int, str]
    schema: pa.Schema
    touched: set[int] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    num_new: int = 0
    num_rows: int = 0
    num_dropped: int = 0
    used: set[str] = field(default_factory=set)
    fading: set[str] = field(default_factory=set)

    @property
    def loose_names(self) -> list[str]:
        """The fragments that any row may stand in, by name."""
        return sorted(self.heads.keys() - set(self.bucket_names.values()))


def plan_buckets(
    storage: Storage, heads: Mapping[str, FragmentHead], rows_at_once: int
) -> BucketMerge:
    """Look at the columns that decide, bucket by bucket, and say what is to be done.

    A bucket is written anew when it has loose rows, or lacks a column that others have.

    Raises:
        FileNotFoundError: a fragment is gone; all is to be looked at again.
        IndexCorruptError: a fragment cannot be read.
    """
    schema = join_tables([head.schema.empty_table() for head in _distinct(heads)]).schema
    plan = BucketMerge(heads, single_buckets(list(heads)), schema)
    plan.replaced |= set(plan.loose_names)
    columns = list(MERGE_COLUMNS)
    for loose, buckets in _passes(storage, plan, rows_at_once, columns):
        for bucket in buckets:
            if bucket in plan.bucket_names or len(loose.in_bucket(bucket)):
                _plan_bucket(storage, plan, loose, bucket)
    plan.fading -= plan.used
    return plan


def _distinct(heads: Mapping[str, FragmentHead]) -> list[FragmentHead]:
    return list({str(head.schema): head for head in heads.values()}.values())


def _plan_bucket(storage: Storage, plan: BucketMerge, loose: LooseRows, bucket: int) -> None:
    columns = list(MERGE_COLUMNS)
    places = loose.in_bucket(bucket)
    theirs = _read_bucket(storage, plan, bucket, columns)
    name = plan.bucket_names.get(bucket, "")
    settled = loose.settle(places, theirs, columns=columns)
    num_rows, num_left = len(places), settled.winners.num_rows
    if theirs is not None:
        num_rows += theirs.num_rows
        plan.fading |= _shards(theirs)
    plan.fading |= _shards(loose.rows(places, columns))
    plan.used |= _shards(settled.winners) | _shards(settled.witnesses)
    plan.num_rows += num_left
    plan.num_dropped += num_rows - num_left - settled.witnesses.num_rows
    has_all = not name or plan.heads[name].schema.equals(plan.schema)
    if len(places) or not has_all or num_rows > num_left:
        plan.touched.add(bucket)
        plan.replaced |= {name} - {""}
        doubtful = pc.unique(settled.witnesses["video_id"])
        plan.num_new += (num_left > len(doubtful)) + (len(doubtful) > 0)


def _shards(table: pa.Table) -> set[str]:
    return set(pc.unique(table["shard"].drop_null()).to_pylist())


def carry_out(
    storage: Storage, plan: BucketMerge, rows_at_once: int, say: Callable[[str], None]
) -> frozenset[str]:
    """Write what is new, then remove what it replaces; the names of the fragments then.

    Raises:
        FileNotFoundError: a fragment is gone; nothing is lost, and all is to be looked at again.
        IndexCorruptError: a fragment cannot be read; no row is lost.
        CacheError: a file cannot be written; no row is lost.
    """
    if not plan.replaced:
        return frozenset(plan.heads)
    say(f"merging {len(plan.replaced)} fragments into {plan.num_new}, by buckets")
    begin_grace(storage, plan.fading)  # their rows begin to go with the first bucket
    new: set[str] = set()
    for loose, buckets in _passes(storage, plan, rows_at_once, None):
        for bucket in sorted(plan.touched.intersection(buckets)):
            new |= _replace_bucket(storage, plan, loose, bucket)
    retire_fragments(storage, plan.replaced - new, fading=plan.fading)
    return frozenset(plan.heads.keys() - plan.replaced) | new


def _replace_bucket(storage: Storage, plan: BucketMerge, loose: LooseRows, bucket: int) -> set[str]:
    """Write the rows of one bucket anew; the names of what holds them."""
    settled = loose.settle(loose.in_bucket(bucket), _read_bucket(storage, plan, bucket, None))
    doubtful = pc.unique(settled.witnesses["video_id"])
    is_doubtful = pc.is_in(settled.winners["video_id"], value_set=doubtful)
    new = set()
    if len(doubtful):
        rows = join_tables([settled.witnesses, settled.winners.filter(is_doubtful)])
        new.add(publish_fragment(storage, _conformed(rows, plan.schema)))
    rows = settled.winners.filter(pc.invert(is_doubtful))
    if rows.num_rows:
        new.add(publish_fragment(storage, _conformed(rows, plan.schema), bucket=bucket))
    old = plan.bucket_names.get(bucket)
    if old is not None and old not in new and not len(doubtful):
        retire_fragments(storage, {old})  # so that the bucket has two for a moment only
    return new


def _conformed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` by video id, with all columns of ``schema``."""
    table = join_tables([schema.empty_table(), rows])
    return table.take(pc.sort_indices(table["video_id"])).combine_chunks()


def _read_bucket(
    storage: Storage, plan: BucketMerge, bucket: int, columns: list[str] | None
) -> pa.Table | None:
    name = plan.bucket_names.get(bucket)
    return read_fragment(storage, name, columns) if name else None


def _passes(
    storage: Storage, plan: BucketMerge, rows_at_once: int, columns: list[str] | None
) -> Iterator[tuple[LooseRows, list[int]]]:
    """The loose rows, those of some buckets at a time when there are many."""
    num_rows = sum(plan.heads[name].num_rows for name in plan.loose_names)
    num_passes = min(NUM_BUCKETS, max(1, math.ceil(num_rows / rows_at_once)))
    for buckets in np.array_split(np.arange(NUM_BUCKETS), num_passes):
        chosen = buckets if num_passes > 1 else None
        read = partial(_read_rows, storage, columns=columns, buckets=chosen)
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            loose = LooseRows(list(pool.map(read, plan.loose_names)))
        yield loose, buckets.tolist()


def _read_rows(
    storage: Storage,
    name: str,
    columns: list[str] | None,
    buckets: npt.NDArray[np.int64] | None,
) -> Fragment:
    table = read_fragment(storage, name, columns)
    if buckets is not None:
        is_chosen = np.isin(buckets_of(table["video_id"]), buckets)
        table = table.filter(pa.array(is_chosen)).combine_chunks()
    return Fragment(name, table)
