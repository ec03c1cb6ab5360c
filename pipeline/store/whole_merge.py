"""Compaction of an index that fits in memory: all rows at once, few fragments for many.

What docs/decisions/compaction.md says of merging holds here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage
from pipeline.store.handover import publish_fragment, retire_fragments
from pipeline.store.merge import Fragment, JoinedRows, Places, judge_rows


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Which fragments give way, and to what.

    ``rows`` are those of all fragments ``names``; of the fragments ``replaced`` the rows at the
    places ``parts`` stay, one new fragment for each part.
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
    rows = judge_rows([fragment.table for fragment in fragments])
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


def carry_out(storage: Storage, plan: MergePlan, say: Callable[[str], None]) -> frozenset[str]:
    """Publish what is new, then remove what it replaces; the names of the fragments then.

    Raises:
        IndexCorruptError: what is new does not hold the rows it was made of.
        CacheError: a file cannot be written; no row is lost.
    """
    if not plan.replaced:
        return plan.names
    say(f"merging {len(plan.replaced)} fragments into {len(plan.parts)}")
    new = {publish_fragment(storage, plan.rows.table.take(pa.array(part))) for part in plan.parts}
    retire_fragments(storage, set(plan.replaced) - new, fading=plan.fading)
    return (plan.names - set(plan.replaced)) | new
