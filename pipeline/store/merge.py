"""Merging: which of several rows of one video counts, whatever fragments they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.index import INDEX_SCHEMA

Places = npt.NDArray[np.uint64]
"""Places of rows in a table."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A fragment as read; ``name`` breaks ties."""

    name: str
    table: pa.Table


@dataclass(frozen=True, slots=True, eq=False)
class JoinedRows:
    """All rows of some fragments as one ``table``, and which of them matter.

    ``winners`` are the places of the rows that count, by video id. ``witnesses`` do not count
    themselves, but without them another row would that should not: a committed row outweighs a
    failure that the winner alone does not, a "damaged" row takes the word of a committed one.
    """

    table: pa.Table
    winners: Places
    witnesses: Places


def merge_fragments(fragments: Sequence[Fragment]) -> pa.Table:
    """One table with one row per video, ordered by ``video_id``, further columns by name.

    A failure ("failed", "quarantined") does not count when the same video has a committed row of
    the same content, or when the failure never learnt its content; a committed row older than a
    "damaged" one has no such say. Of the rows that count the latest ``created_ns`` wins; ties go
    to the greater shard name, then fragment name, then place in the fragment.
    """
    rows = join_fragments(fragments)
    return rows.table.take(pa.array(rows.winners)).combine_chunks()


def join_fragments(fragments: Sequence[Fragment]) -> JoinedRows:
    """All rows of ``fragments`` in turn, judged by the rule of ``merge_fragments``."""
    schema = _common_schema([fragment.table for fragment in fragments])
    tables = [_conformed(fragment.table, schema) for fragment in fragments]
    table = pa.concat_tables(tables or [schema.empty_table()]).combine_chunks()
    order = pc.sort_indices(table["video_id"]).to_numpy()
    codes = _video_codes(table["video_id"], order)
    if codes.size == 0 or codes[-1] + 1 == codes.size:
        return JoinedRows(table, order, order[:0])
    names = [name for f in fragments for name in [f.name] * f.table.num_rows]
    return JoinedRows(table, *_contest(table, order, codes, names))


def _common_schema(tables: Sequence[pa.Table]) -> pa.Schema:
    further: dict[str, pa.DataType] = {}
    for table in tables:
        for field in list(table.schema)[len(INDEX_SCHEMA) :]:
            known = further.setdefault(field.name, field.type)
            further[field.name] = _common_type(known, field.type)
    return pa.schema([*INDEX_SCHEMA, *(pa.field(name, further[name]) for name in sorted(further))])


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = (pa.int64(), pa.float64())
    return pa.float64() if one in numbers and other in numbers else pa.string()


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    return pa.table([_conformed_column(table, field) for field in schema], schema=schema)


def _conformed_column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table[field.name]
    if column.type.equals(field.type):
        return column
    return column.cast(field.type, safe=False)  # beyond 2**53 doubles are rounded


def _video_codes(ids: pa.ChunkedArray, order: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Number the videos 0, 1, ... along ``order``; rows of one video share a number."""
    ordered = ids.take(pa.array(order)).combine_chunks()
    if len(ordered) == 0:
        return np.zeros(0, dtype=np.int64)
    changes = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(changes)]).astype(np.int64)


def _contest(
    table: pa.Table, order: Places, codes: npt.NDArray[np.int64], names: Sequence[str]
) -> tuple[Places, Places]:
    """The winners, in the order of ``codes``, and the witnesses among the rows ``order``."""
    is_single = np.bincount(codes)[codes] == 1
    several, theirs = order[~is_single], codes[~is_single]
    part = table.select(["status", "content_sha256", "created_ns", "shard"])
    part = part.take(pa.array(several))
    is_ok = pc.equal(part["status"], "ok").to_numpy()
    is_damaged = pc.equal(part["status"], "damaged").to_numpy()
    created = part["created_ns"].to_numpy()
    is_lost = is_ok & (created < _latest(created, is_damaged, theirs))
    is_unknown = part["content_sha256"].is_null().to_numpy()
    contents = np.where(is_unknown, -1, _ranks(part["content_sha256"]))
    is_failure = ~(is_ok | is_damaged)
    is_void = _void_failures(is_failure, is_ok & ~is_lost, contents, theirs)
    ranked = np.lexsort(
        (
            several,
            _ranks(pa.chunked_array([[names[row] for row in several.tolist()]], pa.string())),
            _ranks(part["shard"]),
            created,
            ~is_void,
            theirs,
        )
    )
    wins = ranked[np.append(np.diff(theirs[ranked]) != 0, True)]
    winner = wins[np.searchsorted(theirs[wins], theirs)]
    is_outweighed_by_winner = is_ok[winner] & (is_unknown | (contents == contents[winner]))
    in_doubt = theirs[is_void & ~is_outweighed_by_winner]
    is_witness = is_ok & ~is_lost & np.isin(theirs, in_doubt)
    is_witness |= is_damaged & is_failure[winner] & np.isin(theirs, theirs[is_lost])
    is_witness[wins] = False
    winners = np.concatenate([order[is_single], several[wins]])
    winning_codes = np.concatenate([codes[is_single], theirs[wins]])
    return winners[np.argsort(winning_codes)], several[is_witness]


def _latest(
    created: npt.NDArray[np.int64], is_damaged: Bools, codes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each row when the last "damaged" row of its video was made, the least time if none."""
    latest = np.full(codes[-1] + 1, np.iinfo(np.int64).min)
    np.maximum.at(latest, codes[is_damaged], created[is_damaged])
    return latest[codes]


def _void_failures(
    is_failure: Bools,
    is_standing: Bools,
    contents: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
) -> Bools:
    """Failures that a standing row, committed and not lost since, outweighs whatever their age.

    ``contents`` number the contents of the rows, ``codes`` their videos; -1 is an unknown content.
    """
    pairs = codes * (contents.max() + 2) + contents
    same_content = np.isin(pairs, pairs[is_standing])
    unknown = (contents == -1) & np.isin(codes, codes[is_standing])
    void: Bools = is_failure & (same_content | unknown)
    return void


def _ranks(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Integers in the order of the strings; null is 0."""
    filled = pc.fill_null(values, "")
    return np.unique(filled.to_numpy().astype(str), return_inverse=True)[1].astype(np.int64)
