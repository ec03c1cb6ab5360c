"""The index: all fragments as one table with one row per video."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage
from pipeline.store.fragment import fragment_file, fragment_names, read_fragment, read_head
from pipeline.store.merge import Fragment, join_tables, merge_fragments
from pipeline.store.query import query_table
from schemas.errors import IndexCorruptError, VideoNotCachedError
from schemas.index import INDEX_SCHEMA, IndexRow

_NUM_SUGGESTIONS = 3
_NUM_NEIGHBOURS = 100
_NUM_READERS = 4
MAX_LISTINGS = 20
"""How often the folder is listed anew while what it shows vanishes."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """One row per video, ordered by ``video_id``, failures included."""

    table: pa.Table

    def __repr__(self) -> str:
        return f"Index(videos={self.table.num_rows}, columns={self.table.num_columns})"

    @property
    def summary(self) -> str:
        """How much there is, in a few words."""
        num_ok, num_failed = self.counts()
        return f"videos={num_ok}, failed={num_failed}"

    @classmethod
    def read(cls, storage: Storage) -> Index:
        """Read every fragment of a cache; raises as ``read_index`` does."""
        return cls(read_index(storage))

    def __contains__(self, video_id: object) -> bool:
        """Whether there is a row of ``video_id``, of whatever status."""
        return isinstance(video_id, str) and self.status(video_id) is not None

    def status(self, video_id: str) -> str | None:
        """What became of a video, None when there is no row of it."""
        position = self._position(video_id)
        return None if position is None else str(self.table["status"][position].as_py())

    def row(self, video_id: str) -> IndexRow:
        """The row of one video, whatever became of it.

        Raises:
            VideoNotCachedError: no such video; near ids are suggested.
            CacheCorruptError: the row contradicts itself.
        """
        position = self._position(video_id)
        if position is None:
            raise VideoNotCachedError(f"no video {video_id!r} in this cache{self._hint(video_id)}")
        return row_at(self.table, position, video_id)

    def counts(self) -> tuple[int, int]:
        """How many videos are loadable, and how many are not."""
        num_ok = int(pc.sum(pc.equal(self.table["status"], "ok")).as_py() or 0)
        return num_ok, self.table.num_rows - num_ok

    def ids(self) -> Iterator[str]:
        """Ids of the loadable videos, sorted."""
        for chunk in self.table["video_id"].filter(pc.equal(self.table["status"], "ok")).chunks:
            yield from chunk.to_pylist()

    def failed(self) -> pa.Table:
        """The rows of videos that have no tokens, ordered by ``video_id``."""
        return self.table.filter(pc.not_equal(self.table["status"], "ok"))

    def query(self, sql: str, *, columns: str = "*") -> pa.Table:
        """Ask in SQL, as ``query_table``."""
        return query_table(self.table, sql, columns=columns)

    def _position(self, video_id: str) -> int | None:
        """The table row of ``video_id``, by bisection; None when there is none."""
        ids = self.table["video_id"]
        found = bisect_left(range(len(ids)), video_id, key=lambda row: ids[row].as_py())
        return found if found < len(ids) and ids[found].as_py() == video_id else None

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


def row_at(table: pa.Table, position: int, video_id: str) -> IndexRow:
    """One row of an index.

    Raises:
        CacheCorruptError: the row contradicts itself.
    """
    try:
        columns = zip(table.column_names, table.columns, strict=True)
        return IndexRow.from_record({name: _value(name, c[position]) for name, c in columns})
    except (ValueError, OverflowError) as error:
        raise IndexCorruptError(f"video {video_id!r}: {error}") from error


def _value(name: str, value: pa.Scalar) -> Any:
    """A value as Python's own; one of a further column that Python cannot hold as it is."""
    try:
        return value.as_py()
    except (ValueError, OverflowError):  # a time of nanoseconds, or of another era
        if name in INDEX_SCHEMA.names:
            raise
        return value


def read_index(storage: Storage) -> pa.Table:
    """All fragments of a cache as one table, by the rule of ``merge_tables``.

    Raises:
        IndexCorruptError: a fragment cannot be read; the message names it.
    """
    return merge_fragments(read_fragments(storage))


def index_schema(storage: Storage) -> pa.Schema:
    """The columns that ``read_index`` would give; only footers of fragments are read for it.

    Raises:
        IndexCorruptError: a fragment cannot be read; the message names it.
    """
    heads, damage = scan_names(storage, partial(read_head, storage))
    if damage:
        raise next(iter(damage.values()))
    schemas = {str(head.schema): head.schema for head in heads.values()}
    return join_tables([schema.empty_table() for schema in schemas.values()]).schema


def read_fragments(storage: Storage, *, known: Collection[str] = ()) -> list[Fragment]:
    """Every fragment but those named in ``known``, by name; raises as ``read_index`` does."""
    fragments, damage = scan_fragments(storage, known=known)
    if damage:
        raise next(iter(damage.values()))
    return fragments


def scan_fragments(
    storage: Storage, *, known: Collection[str] = ()
) -> tuple[list[Fragment], dict[str, IndexCorruptError]]:
    """Every fragment but those named in ``known``, by name, and what is wrong with the others.

    Raises:
        IndexCorruptError: what is listed is gone, again and again.
    """
    found, damage = scan_names(storage, partial(read_fragment, storage), known=known)
    return [Fragment(name, found[name]) for name in sorted(found)], damage


def scan_names(
    storage: Storage, read: Callable[[str], T], *, known: Collection[str] = ()
) -> tuple[dict[str, T], dict[str, IndexCorruptError]]:
    """What ``read`` says of every fragment but those named in ``known``, or what it raises.

    While this reads, writers add fragments, and compaction publishes a merged one and then removes
    those that went into it. A folder listed meanwhile may show neither. So it is listed until, in
    the second listing or a later one, nothing is gone that it shows: what went before that listing
    was read, or is in a fragment it shows. Rows that were read stay true.

    Raises:
        IndexCorruptError: what is listed is gone, again and again.
    """
    found: dict[str, T] = {}
    damage: dict[str, IndexCorruptError] = {}
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for listing in range(MAX_LISTINGS):
            seen = {*known, *found, *damage}
            is_all_there = True
            names = [name for name in fragment_names(storage) if name not in seen]
            outcomes = pool.map(partial(_read_present, storage, read), names)
            for name, outcome in zip(names, outcomes, strict=True):
                if outcome is None:
                    is_all_there = False
                elif isinstance(outcome, IndexCorruptError):
                    damage[name] = outcome
                else:
                    found[name] = outcome
            if listing and is_all_there:
                return found, damage
    raise vanishing(storage)


def vanishing(storage: Storage) -> IndexCorruptError:
    """The error of an index that is rewritten faster than it can be read."""
    return IndexCorruptError(
        f"the fragments of {storage.location} vanish while they are read; open it again once "
        "whoever rewrites them is done"
    )


def _read_present(
    storage: Storage, read: Callable[[str], T], name: str
) -> T | IndexCorruptError | None:
    """What ``read`` says of the fragment, what is wrong with it, or None when it is gone."""
    try:
        return read(name)
    except IndexCorruptError as error:
        return error if name in fragment_names(storage) else None
    except FileNotFoundError:
        return link_to_nothing(storage, name) if name in fragment_names(storage) else None


def link_to_nothing(storage: Storage, name: str) -> IndexCorruptError:
    """The error of a fragment that is listed and cannot be found."""
    where = storage.where(fragment_file(name))
    return IndexCorruptError(f"index fragment {where} is a link to nothing")
