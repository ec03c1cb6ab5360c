"""The index: all fragments as one table with one row per video."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.fragment import fragment_paths, read_fragment
from schemas.errors import GridMismatchError, IndexCorruptError, VideoNotCachedError
from schemas.index import INDEX_SCHEMA, IndexRow

_NUM_SUGGESTIONS = 3
_NUM_NEIGHBOURS = 100
_NUM_READERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """One row per video, ordered by ``video_id``, failures included."""

    table: pa.Table

    def __repr__(self) -> str:
        return f"Index(videos={self.table.num_rows}, columns={self.table.num_columns})"

    @classmethod
    def read(cls, root: Path) -> Index:
        """Read every fragment of the cache at ``root``; raises as ``read_index`` does."""
        return cls(read_index(root))

    def position(self, video_id: str) -> int | None:
        """The table row of ``video_id``, by bisection; None when there is none."""
        ids = self.table["video_id"]
        found = bisect_left(range(len(ids)), video_id, key=lambda row: ids[row].as_py())
        return found if found < len(ids) and ids[found].as_py() == video_id else None

    def row(self, video_id: str) -> IndexRow:
        """The row of one video, whatever became of it.

        Raises:
            VideoNotCachedError: no such video; near ids are suggested.
            CacheCorruptError: the row contradicts itself.
        """
        position = self.position(video_id)
        if position is None:
            raise VideoNotCachedError(f"no video {video_id!r} in this cache{self._hint(video_id)}")
        try:
            columns = zip(self.table.column_names, self.table.columns, strict=True)
            return IndexRow.from_record({name: c[position].as_py() for name, c in columns})
        except (GridMismatchError, UnicodeDecodeError) as error:
            raise IndexCorruptError(f"video {video_id!r}: {error}") from error

    def _hint(self, video_id: str) -> str:
        if not self.table.num_rows:
            return "; it is empty"
        near = difflib.get_close_matches(video_id, self._candidates(video_id), n=_NUM_SUGGESTIONS)
        if near:
            return f"; did you mean {' or '.join(map(repr, near))}?"
        return f"; it holds {self.table.num_rows} videos, cache.ids() lists them"

    def _candidates(self, video_id: str) -> list[str]:
        """Ids worth comparing: neighbours in order, and those with the same file name."""
        ids = self.table["video_id"]
        place = bisect_left(range(len(ids)), video_id, key=lambda row: ids[row].as_py())
        nearby = ids.slice(max(0, place - _NUM_NEIGHBOURS), 2 * _NUM_NEIGHBOURS)
        stem = video_id.rpartition("/")[2].rpartition(".")[0] or video_id
        named = ids.filter(pc.match_substring(ids, stem, ignore_case=True))
        return list(dict.fromkeys(nearby.to_pylist() + named.slice(0, _NUM_NEIGHBOURS).to_pylist()))


def read_index(root: Path) -> pa.Table:
    """All fragments of the cache at ``root`` as one table, by the rule of ``merge_fragments``.

    Raises:
        IndexCorruptError: a fragment cannot be read; the message names it.
    """
    return merge_fragments(_read_all(root))


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A fragment as read; ``name`` breaks ties."""

    name: str
    table: pa.Table


def _read_all(root: Path) -> list[Fragment]:
    """All fragments as of one moment: when one is removed meanwhile, look again."""
    for _ in range(3):
        try:
            paths = fragment_paths(root)
            with ThreadPoolExecutor(_NUM_READERS) as pool:
                tables = list(pool.map(read_fragment, paths))
            return [Fragment(p.stem, table) for p, table in zip(paths, tables, strict=True)]
        except FileNotFoundError:
            continue
    raise IndexCorruptError(
        f"the fragments of {root} vanish while they are read; open it again once whoever "
        "rewrites them is done"
    )


def merge_fragments(fragments: Sequence[Fragment]) -> pa.Table:
    """One table with one row per video, ordered by ``video_id``.

    A failure does not count when the same video has a committed row of the same content, or when
    the failure never learnt its content. Of the rows that count the latest ``created_ns`` wins;
    ties go to the greater shard name, then fragment name, then place in the fragment.
    """
    if not fragments:
        return INDEX_SCHEMA.empty_table()
    schema = _common_schema([fragment.table for fragment in fragments])
    table = pa.concat_tables([_conformed(fragment.table, schema) for fragment in fragments])
    table = table.combine_chunks()
    order = pc.sort_indices(table["video_id"]).to_numpy()
    codes = _video_codes(table["video_id"], order)
    if codes.size and codes[-1] + 1 < codes.size:
        names = [name for f in fragments for name in [f.name] * f.table.num_rows]
        order = _winners(table, order, codes, names)
    return table.take(pa.array(order)).combine_chunks()


def _common_schema(tables: Sequence[pa.Table]) -> pa.Schema:
    further: dict[str, pa.DataType] = {}
    for table in tables:
        for field in list(table.schema)[len(INDEX_SCHEMA) :]:
            known = further.setdefault(field.name, field.type)
            further[field.name] = _common_type(known, field.type)
    return pa.schema([*INDEX_SCHEMA, *(pa.field(name, kind) for name, kind in further.items())])


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
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _video_codes(ids: pa.ChunkedArray, order: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Number the videos 0, 1, ... along ``order``; rows of one video share a number."""
    ordered = ids.take(pa.array(order)).combine_chunks()
    if len(ordered) == 0:
        return np.zeros(0, dtype=np.int64)
    changes = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(changes)]).astype(np.int64)


def _winners(
    table: pa.Table,
    order: npt.NDArray[np.uint64],
    codes: npt.NDArray[np.int64],
    names: Sequence[str],
) -> npt.NDArray[np.uint64]:
    """The row of ``order`` that counts for each video, by the rule of ``merge_fragments``."""
    counts = np.bincount(codes)
    single = counts[codes] == 1
    several, their_codes = order[~single], codes[~single]
    part = table.select(["status", "content_sha256", "created_ns", "shard"])
    part = part.take(pa.array(several))
    ranked = np.lexsort(
        (
            several,
            _ranks(pa.chunked_array([[names[row] for row in several.tolist()]], pa.string())),
            _ranks(part["shard"]),
            part["created_ns"].to_numpy(),
            ~_void_failures(part, their_codes),
            their_codes,
        )
    )
    is_last = np.append(np.diff(their_codes[ranked]) != 0, True)
    winners = np.concatenate([order[single], several[ranked][is_last]])
    winning_codes = np.concatenate([codes[single], their_codes[ranked][is_last]])
    return winners[np.argsort(winning_codes)]


def _void_failures(part: pa.Table, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Failures that a committed row of the same video outweighs whatever their age."""
    is_ok = pc.equal(part["status"], "ok").to_numpy()
    contents = _ranks(part["content_sha256"])
    pairs = codes * (contents.max() + 1) + contents
    same_content = np.isin(pairs, pairs[is_ok])
    unknown = part["content_sha256"].is_null().to_numpy() & np.isin(codes, codes[is_ok])
    void: npt.NDArray[np.bool_] = ~is_ok & (same_content | unknown)
    return void


def _ranks(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Integers in the order of the strings; null is 0."""
    filled = pc.fill_null(values, "")
    return np.unique(filled.to_numpy().astype(str), return_inverse=True)[1].astype(np.int64)
