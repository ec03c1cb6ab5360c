"""Compaction: many index fragments become few, and what no row refers to is swept.

Readers and writers may go on meanwhile, and a second compaction too; docs/decisions/compaction.md
says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.storage import Storage
from pipeline.store import bucket_merge, whole_merge
from pipeline.store.bucket_merge import ROWS_AT_ONCE
from pipeline.store.compact_report import CompactReport
from pipeline.store.fragment import FragmentHead, named_bucket, read_head
from pipeline.store.index import MAX_LISTINGS, read_fragments, scan_names, vanishing
from pipeline.store.manifest import read_manifest
from pipeline.store.sweep import Sweep
from schemas.errors import CacheError, IndexCorruptError, TokenreelError

BUCKET_FROM_ROWS = 100_000
"""From this many rows on the index is kept in buckets; below, opening one file is faster."""

MAX_FRAGMENT_ROWS = 1_000_000
"""Rows of a merged fragment; one of half as many is large enough to be left as it is."""

GRACE_SECONDS = 3600.0
"""Files that no row refers to are left alone while they are younger."""


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
    with _errors_about(storage):
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
    return _report(outcome, sweep.counts, dry_run)


@contextmanager
def _errors_about(storage: Storage) -> Iterator[None]:
    """Name the cache in what goes wrong, and say that nothing is lost."""
    try:
        yield
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What merging did, or in a dry run would do; ``names`` are the fragments that are there.

    ``num_planned`` is how many would be left; fewer are where two turn out to be of equal bytes.
    """

    names: frozenset[str]
    num_before: int
    num_replaced: int
    num_planned: int
    num_rows: int
    num_dropped: int
    used: Collection[str]
    fading: Collection[str]


def _report(outcome: _Outcome, swept: Counter[str], dry_run: bool) -> CompactReport:
    return CompactReport(
        fragments_before=outcome.num_before,
        fragments_replaced=outcome.num_replaced,
        fragments_after=outcome.num_planned if dry_run else len(outcome.names),
        rows=outcome.num_rows,
        rows_dropped=outcome.num_dropped,
        shards_swept=swept["unused"],
        shards_waiting=swept["waiting"],
        temporary_files_swept=swept["temporary_files"],
        bytes_freed=swept["bytes"],
        foreign_files=swept["foreign"],
        is_dry_run=dry_run,
    )


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
    plan = whole_merge.plan_merge(read_fragments(storage), max_fragment_rows)
    return _Outcome(
        names=plan.names if dry_run else whole_merge.carry_out(storage, plan, say),
        num_before=len(plan.names),
        num_replaced=len(plan.replaced),
        num_planned=len(plan.names) - len(plan.replaced) + len(plan.parts),
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
    plan = bucket_merge.plan_buckets(storage, heads, rows_at_once)
    carry_out = partial(bucket_merge.carry_out, storage, plan, rows_at_once, say)
    return _Outcome(
        names=frozenset(heads) if dry_run else carry_out(),
        num_before=len(heads),
        num_replaced=len(plan.replaced),
        num_planned=len(heads) - len(plan.replaced) + plan.num_new,
        num_rows=plan.num_rows,
        num_dropped=plan.num_dropped,
        used=plan.used,
        fading=plan.fading,
    )
