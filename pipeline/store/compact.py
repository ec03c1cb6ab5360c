"""Compaction: many index fragments become few, and what no row refers to is swept.

Readers and writers may go on meanwhile, and a second compaction too; docs/decisions/compaction.md
says why.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage
from pipeline.store.bucket_merge import ROWS_AT_ONCE, carry_out, plan_buckets
from pipeline.store.fragment import (
    INDEX_FOLDER,
    FragmentHead,
    fragment_file,
    named_bucket,
    pack_table,
    parse_fragment,
    read_head,
)
from pipeline.store.index import MAX_LISTINGS, read_fragments, scan_names, vanishing
from pipeline.store.manifest import read_manifest
from pipeline.store.merge import Fragment, JoinedRows, Places, join_fragments
from pipeline.store.shard import shard_file
from pipeline.store.sweep import Sweep
from schemas.errors import CacheError, IndexCorruptError, TokenreelError
from schemas.index import DIGEST_NAME

BUCKET_FROM_ROWS = 100_000
"""From this many rows on the index is kept in buckets; below, opening one file is faster."""

MAX_FRAGMENT_ROWS = 1_000_000
"""Rows of a merged fragment; one of half as many is large enough to be left as it is."""

GRACE_SECONDS = 3600.0
"""Files that no row refers to are left alone while they are younger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did, or with ``is_dry_run`` would do.

    Of ``fragments_before``, ``fragments_replaced`` gave way to fewer. ``rows`` is one per video;
    ``rows_dropped`` lost against another row of their video. Shards are swept when no row refers
    to them; ``shards_waiting`` are too young for that. ``bytes_freed`` counts shards and
    temporary files. ``foreign_files`` were left alone.
    """

    fragments_before: int
    fragments_replaced: int
    fragments_after: int
    rows: int
    rows_dropped: int
    shards_swept: int
    shards_waiting: int
    temporary_files_swept: int
    bytes_freed: int
    foreign_files: int
    is_dry_run: bool

    def lines(self) -> list[str]:
        """The report for a person."""
        now = f"now {self.fragments_after}" if self.fragments_replaced else "already compact"
        lines = ["dry run, nothing was changed"] if self.is_dry_run else []
        lines += [
            f"fragments: {self.fragments_before}, {now}",
            f"rows: {self.rows}, dropped: {self.rows_dropped}",
            f"swept: shards {self.shards_swept}, temporary files {self.temporary_files_swept}, "
            f"{self.bytes_freed / 1e6:.1f} MB",
        ]
        if self.shards_waiting:
            lines.append(f"no row refers to them, but too young yet: shards {self.shards_waiting}")
        if self.foreign_files:
            lines.append(f"not tokenreel's, left alone: files {self.foreign_files}")
        return lines


def compact_cache(
    storage: Storage,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    max_fragment_rows: int = MAX_FRAGMENT_ROWS,
    bucket_from_rows: int = BUCKET_FROM_ROWS,
    rows_at_once: int = ROWS_AT_ONCE,
    say: Callable[[str], None] = lambda line: None,
) -> CompactReport:
    """Merge the index of a cache and sweep what no row refers to.

    The table that ``read_index`` gives is the same before, meanwhile and after. Needs memory for
    about three times the index as Arrow tables; where it is kept in buckets, for the loose rows,
    ``rows_at_once`` at most, and a bucket.

    Args:
        storage: where the cache lies.
        grace_seconds: how old a file that no row refers to must be; 0 only where nobody writes.
        dry_run: change nothing, report what would be done.
        max_fragment_rows: rows of a merged fragment.
        bucket_from_rows: an index of so many rows is kept in buckets from then on.
        rows_at_once: how many rows that are in no bucket yet are read at a time.
        say: is told what begins, where that may take long.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheCorruptError: the manifest or a fragment cannot be read; nothing was changed, or
            where the index is in buckets, some of them are compact and no row is lost.
        CacheError: a file cannot be written or removed; nothing that a row refers to is lost.
    """
    read_manifest(storage)
    try:
        outcome = _merge(storage, max_fragment_rows, bucket_from_rows, rows_at_once, dry_run, say)
        sweep = Sweep(
            storage,
            used=outcome.used,
            fragments=outcome.names,
            fading=outcome.fading,
            grace_seconds=grace_seconds,
            is_dry_run=dry_run,
        )
        say("looking for shards that no row refers to")
        sweep.run()
    except TokenreelError:
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise IndexCorruptError(
            f"the index of {storage.location} cannot be merged: {error}. Nothing that a row refers "
            "to is lost; `tokenreel verify` may name what is wrong."
        ) from error
    except OSError as error:
        raise CacheError(
            f"cannot compact {storage.location}: {error}. Nothing that a row refers to is lost; "
            "correct the permissions, then run it again."
        ) from error
    return CompactReport(
        fragments_before=outcome.num_before,
        fragments_replaced=outcome.num_replaced,
        fragments_after=outcome.num_after,
        rows=outcome.num_rows,
        rows_dropped=outcome.num_dropped,
        shards_swept=sweep.counts["unused"],
        shards_waiting=sweep.counts["waiting"],
        temporary_files_swept=sweep.counts["temporary_files"],
        bytes_freed=sweep.counts["bytes"],
        foreign_files=sweep.counts["foreign"],
        is_dry_run=dry_run,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What merging did, or in a dry run would do; ``names`` are the fragments that are there."""

    names: frozenset[str]
    num_before: int
    num_replaced: int
    num_after: int
    num_rows: int
    num_dropped: int
    used: Collection[str]
    fading: Collection[str]


def _merge(
    storage: Storage,
    max_fragment_rows: int,
    bucket_from_rows: int,
    rows_at_once: int,
    dry_run: bool,
    say: Callable[[str], None],
) -> _Outcome:
    """Merge the index, anew when another compaction removes what this one reads."""
    for _ in range(MAX_LISTINGS):
        heads, damage = scan_names(storage, partial(read_head, storage))
        if damage:
            raise next(iter(damage.values()))
        say(f"reading {len(heads)} fragments")
        is_large = sum(head.num_rows for head in heads.values()) >= bucket_from_rows
        if not is_large and all(named_bucket(name) is None for name in heads):
            return _merge_whole(storage, max_fragment_rows, dry_run, say)
        try:
            return _merge_buckets(storage, heads, rows_at_once, dry_run, say)
        except FileNotFoundError:
            say("another compaction is at work; looking again")
    raise vanishing(storage)


def _merge_whole(
    storage: Storage, max_fragment_rows: int, dry_run: bool, say: Callable[[str], None]
) -> _Outcome:
    plan = plan_merge(read_fragments(storage), max_fragment_rows)
    return _Outcome(
        names=plan.names if dry_run else _carry_out(storage, plan, say),
        num_before=len(plan.names),
        num_replaced=len(plan.replaced),
        num_after=len(plan.names) - len(plan.replaced) + len(plan.parts),
        num_rows=len(plan.rows.winners),
        num_dropped=plan.num_dropped,
        used=plan.used,
        fading=plan.fading,
    )


def _merge_buckets(
    storage: Storage,
    heads: Mapping[str, FragmentHead],
    rows_at_once: int,
    dry_run: bool,
    say: Callable[[str], None],
) -> _Outcome:
    plan = plan_buckets(storage, heads, rows_at_once)
    names = frozenset(heads) if dry_run else carry_out(storage, plan, rows_at_once, say)
    return _Outcome(
        names=names,
        num_before=len(heads),
        num_replaced=len(plan.replaced),
        num_after=len(heads) - len(plan.replaced) + plan.num_new,
        num_rows=plan.num_rows,
        num_dropped=plan.num_dropped,
        used=plan.used,
        fading=plan.fading,
    )


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Which fragments give way, and to what.

    ``rows`` are those of all fragments ``names``; of the fragments ``replaced``, in the order of
    their names, the rows at the places ``parts`` stay, one new fragment for each part.
    """

    rows: JoinedRows
    names: frozenset[str]
    replaced: tuple[str, ...]
    parts: tuple[Places, ...]

    @property
    def num_dropped(self) -> int:
        """Rows that are in no fragment afterwards."""
        num_left = len(self.rows.winners) + len(self.rows.witnesses)
        return int(self.rows.table.num_rows) - num_left

    @cached_property
    def used(self) -> frozenset[str]:
        """Shards that rows refer to afterwards."""
        stay = np.concatenate([self.rows.winners, self.rows.witnesses])
        return _distinct(self.rows.table["shard"].take(pa.array(stay)))

    @cached_property
    def fading(self) -> frozenset[str]:
        """Shards that only rows to be dropped refer to."""
        return _distinct(self.rows.table["shard"]) - self.used


def _distinct(shards: pa.ChunkedArray) -> frozenset[str]:
    return frozenset(pc.unique(shards.drop_null()).to_pylist())


def plan_merge(fragments: Sequence[Fragment], max_fragment_rows: int) -> MergePlan:
    """Replace what is small, or holds rows that do not count, or lacks a column that others have.

    A single fragment whose rows all count is left as it is, however small.
    """
    rows = join_fragments(fragments)
    schema = rows.table.schema
    sizes = np.array([fragment.table.num_rows for fragment in fragments], dtype=np.int64)
    origin = np.searchsorted(np.cumsum(sizes), rows.winners, side="right")
    is_clean = np.bincount(origin, minlength=len(sizes)) == sizes
    is_kept = is_clean & (2 * sizes >= max_fragment_rows)
    is_kept &= np.array([f.table.schema.equals(schema) for f in fragments], dtype=bool)
    if (~is_kept).sum() == 1 and is_clean[~is_kept].all():
        is_kept[:] = True
    moved = np.concatenate([rows.witnesses, rows.winners[~is_kept[origin]]])
    moved = moved[pc.sort_indices(rows.table["video_id"].take(pa.array(moved))).to_numpy()]
    num_parts = math.ceil(len(moved) / max_fragment_rows)
    return MergePlan(
        rows,
        frozenset(fragment.name for fragment in fragments),
        tuple(sorted(f.name for f, kept in zip(fragments, is_kept, strict=True) if not kept)),
        tuple(np.array_split(moved, num_parts)) if num_parts else (),
    )


def _carry_out(storage: Storage, plan: MergePlan, say: Callable[[str], None]) -> frozenset[str]:
    """Publish what is new, then remove what it replaces; the names of the fragments then."""
    if not plan.replaced:
        return plan.names
    say(f"merging {len(plan.replaced)} fragments into {len(plan.parts)}")
    new = {_publish_part(storage, plan.rows.table.take(pa.array(part))) for part in plan.parts}
    for shard in filter(DIGEST_NAME.fullmatch, plan.fading):
        storage.touch(shard_file(shard))  # the grace period begins when the last row goes
    storage.flush(INDEX_FOLDER)  # also where a second compaction has published the same fragment
    for name in plan.replaced:  # a tie goes to the greater name, so that goes last
        if name not in new:
            storage.remove(fragment_file(name))
    storage.flush(INDEX_FOLDER)
    return (plan.names - set(plan.replaced)) | new


def _publish_part(storage: Storage, table: pa.Table) -> str:
    """Write a merged fragment, named by the digest of its bytes, after reading it on trial."""
    table = table.combine_chunks()
    data = pack_table(table)
    name = hashlib.sha256(data).hexdigest()
    where = storage.where(fragment_file(name))
    if not parse_fragment(pa.BufferReader(data), where)["video_id"].equals(table["video_id"]):
        raise IndexCorruptError(f"merged fragment {where} would not hold the rows it was made of")
    storage.create(fragment_file(name), [data])
    return name
