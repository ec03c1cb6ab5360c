"""Merging: which of several rows of one video counts, whatever fragments they stand in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import common_type
from schemas.index import INDEX_SCHEMA

Places = npt.NDArray[np.uint64]
"""Places of rows in a table."""

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

MERGE_COLUMNS = ("video_id", "status", "content_sha256", "created_ns", "shard", "writer")
"""Columns that decide which row of a video counts, but between rows that agree in all of them."""

_TIE_COLUMNS = ("shard", "status", "content_sha256", "writer")


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A fragment as read."""

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
    """The rows of all fragments by the rule of ``merge_tables``."""
    return merge_tables([fragment.table for fragment in fragments])


def merge_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """One table with one row per video, ordered by ``video_id``, further columns by name.

    A failure ("failed", "quarantined") does not count when the same video has a committed row of
    the same content, or when the failure never learnt its content; a committed row older than a
    "damaged" one has no such say. Of the rows that count the latest ``created_ns`` wins; ties go
    to what the rows hold, never to where they stand: the greater shard name, then status, content
    and writer, then the other columns by name. The layout follows from them.
    """
    rows = judge_rows(tables)
    return rows.table.take(pa.array(rows.winners)).combine_chunks()


def judge_rows(tables: Sequence[pa.Table]) -> JoinedRows:
    """All rows of ``tables`` in turn, judged by the rule of ``merge_tables``."""
    table = _joined(tables).combine_chunks()
    order = pc.sort_indices(table["video_id"]).to_numpy()
    codes = _video_codes(table["video_id"], order)
    if codes.size == 0 or codes[-1] + 1 == codes.size:
        return JoinedRows(table, order, order[:0])
    return JoinedRows(table, *_contest(table, order, codes))


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of ``tables`` in turn; further columns and their types are joined as in merging."""
    if tables and all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    return _joined(tables)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    schema = _common_schema(tables)
    parts = [_conformed(table, schema) for table in tables]
    return pa.concat_tables(parts or [schema.empty_table()])


def _common_schema(tables: Sequence[pa.Table]) -> pa.Schema:
    """The columns of the index that the first of ``tables`` has, further ones of all by name."""
    further: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            if field.name not in INDEX_SCHEMA.names:
                known = further.setdefault(field.name, field.type)
                further[field.name] = common_type(known, field.type) or pa.string()
    known_names = tables[0].column_names if tables else INDEX_SCHEMA.names
    fixed = [field for field in INDEX_SCHEMA if field.name in known_names]
    return pa.schema([*fixed, *(pa.field(name, further[name]) for name in sorted(further))])


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
    if pa.types.is_string(field.type) and pa.types.is_nested(column.type):
        return pa.array(map(_json_text, column), pa.string())
    return column.cast(field.type, safe=False)  # beyond 2**53 doubles are rounded


def _video_codes(ids: pa.ChunkedArray, order: npt.NDArray[np.uint64]) -> Ints:
    """Number the videos 0, 1, ... along ``order``; rows of one video share a number."""
    ordered = ids.take(pa.array(order)).combine_chunks()
    if len(ordered) == 0:
        return np.zeros(0, dtype=np.int64)
    changes = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(changes)]).astype(np.int64)


def _contest(table: pa.Table, order: Places, codes: Ints) -> tuple[Places, Places]:
    """The winners, in the order of ``codes``, and the witnesses among the rows ``order``."""
    is_single = np.bincount(codes)[codes] == 1
    several, theirs = order[~is_single], codes[~is_single]
    part = table.select(list(MERGE_COLUMNS)).take(pa.array(several))
    is_ok = pc.equal(part["status"], "ok").to_numpy()
    is_damaged = pc.equal(part["status"], "damaged").to_numpy()
    created = part["created_ns"].to_numpy()
    is_lost = is_ok & (created < _latest(created, is_damaged, theirs))
    is_unknown = part["content_sha256"].is_null().to_numpy()
    contents = np.where(is_unknown, -1, _ranks(part["content_sha256"]))
    is_failure = ~(is_ok | is_damaged)
    is_void = _void_failures(is_failure, is_ok & ~is_lost, contents, theirs)
    keys = (theirs, ~is_void, created, *(_ranks(part[name]) for name in _TIE_COLUMNS))
    ranked = _by_the_rest(table, several, np.lexsort(keys[::-1]), keys)
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


def _latest(created: Ints, is_damaged: Bools, codes: Ints) -> Ints:
    """For each row when the last "damaged" row of its video was made, the least time if none."""
    latest = np.full(codes[-1] + 1, np.iinfo(np.int64).min)
    np.maximum.at(latest, codes[is_damaged], created[is_damaged])
    return latest[codes]


def _void_failures(
    is_failure: Bools,
    is_standing: Bools,
    contents: Ints,
    codes: Ints,
) -> Bools:
    """Failures that a standing row, committed and not lost since, outweighs whatever their age.

    ``contents`` number the contents of the rows, ``codes`` their videos; -1 is an unknown content.
    """
    pairs = codes * (contents.max() + 2) + contents
    same_content = np.isin(pairs, pairs[is_standing])
    unknown = (contents == -1) & np.isin(codes, codes[is_standing])
    void: Bools = is_failure & (same_content | unknown)
    return void


def _by_the_rest(
    table: pa.Table, places: Places, ranked: npt.NDArray[np.intp], keys: Sequence[npt.NDArray[Any]]
) -> npt.NDArray[np.intp]:
    """``ranked``, where rows with equal ``keys`` are put in order by the columns not among them."""
    is_equal = np.ones(len(ranked) - 1, np.bool_)
    for key in keys:
        is_equal &= key[ranked[1:]] == key[ranked[:-1]]
    is_tied = np.append(is_equal, False) | np.append(False, is_equal)
    if not is_tied.any():
        return ranked
    tied = ranked[is_tied]
    runs = np.append(0, np.cumsum(~is_equal))[is_tied]
    names = sorted({*table.column_names} - {*MERGE_COLUMNS, "layout"})
    rows = table.select(names).take(pa.array(places[tied]))
    order = np.lexsort((*(_ranks(column) for column in rows.columns[::-1]), runs))
    result = ranked.copy()
    result[is_tied] = tied[order]
    return result


def _ranks(values: pa.ChunkedArray) -> Ints:
    """Integers in the order of the values, equal for equal ones; null is 0."""
    try:
        ranks = pc.rank(values, tiebreaker="dense")
    except pa.ArrowNotImplementedError:
        return _ranks(pa.chunked_array([[_json_text(value) for value in values]], pa.string()))
    return np.where(values.is_null(), 0, ranks).astype(np.int64)


def _json_text(value: pa.Scalar) -> str | None:
    return json.dumps(value.as_py(), sort_keys=True, default=str) if value.is_valid else None
