"""The index of many videos: bucket fragments stay on disk, a look-up reads one small row group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import RLock
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage
from pipeline.store.buckets import BucketFile
from pipeline.store.fragment import (
    NUM_BUCKETS,
    bucket_of,
    fragment_file,
    fragment_names,
)
from pipeline.store.index import MAX_LISTINGS, Index, link_to_nothing, row_at, vanishing
from pipeline.store.merge import MERGE_COLUMNS, join_tables, merge_fragments, merge_tables
from pipeline.store.parts import IndexParts, bucket_winners, loose_winners, read_parts
from pipeline.store.query import query_files, query_table
from schemas.errors import QueryError, VideoNotCachedError
from schemas.index import INDEX_SCHEMA, IndexRow

MAX_OPEN_BUCKETS = 64
"""Bucket files that stay open; from an object store each is held in memory."""

T = TypeVar("T")


def open_index(storage: Storage) -> Index | BucketIndex:
    """The index of a cache: in memory, or when it has bucket fragments read as it is asked.

    Raises:
        IndexCorruptError: a fragment cannot be read; the message names it.
    """
    parts = read_parts(storage)
    if parts.buckets:
        return BucketIndex(storage, parts)
    return Index(merge_fragments(parts.fragments))


def read_columns(storage: Storage, columns: Sequence[str]) -> pa.Table:
    """Some columns of the whole index, one row per video in any order; others are not held.

    Args:
        storage: where the cache lies.
        columns: names of columns of the index.

    Raises:
        IndexCorruptError: a fragment cannot be read; the message names it.
    """
    needed = list(dict.fromkeys([*MERGE_COLUMNS, *columns]))
    return BucketIndex(storage, read_parts(storage, needed), needed).select(columns)


class BucketIndex:
    """An index in bucket fragments, and loose rows of what was built since.

    Threads may share it, and it crosses to other processes by pickle. Files that a compaction
    replaces are found by listing the folder again; rows committed since are then seen too.

    Args:
        storage: where the cache lies.
        parts: as ``read_parts`` gives them.
        columns: what of loose rows is read; None for all.
    """

    def __init__(
        self, storage: Storage, parts: IndexParts, columns: list[str] | None = None
    ) -> None:
        self._storage = storage
        self._parts = parts
        self._columns = columns
        self._counts: tuple[int, int] | None = None
        self._like: tuple[IndexParts, pa.Table] | None = None
        self._open: OrderedDict[str, BucketFile] = OrderedDict()
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"BucketIndex({self.summary})"

    @property
    def summary(self) -> str:
        """How much there is, as far as that is known without reading the buckets."""
        return f"buckets={len(self._parts.buckets)}, loose rows={len(self._parts.loose)}"

    def __reduce__(self) -> tuple[type[BucketIndex], tuple[object, ...]]:
        return BucketIndex, (self._storage, self._parts, self._columns)

    def __contains__(self, video_id: object) -> bool:
        """Whether there is a row of ``video_id``, of whatever status."""
        return isinstance(video_id, str) and self._find(video_id) is not None

    def status(self, video_id: str) -> str | None:
        """What became of a video, None when there is no row of it.

        Raises:
            IndexCorruptError: its bucket's fragment is damaged.
        """
        found = self._find(video_id)
        return None if found is None else str(found["status"][0].as_py())

    def row(self, video_id: str) -> IndexRow:
        """The row of one video, whatever became of it.

        Raises:
            VideoNotCachedError: no such video.
            CacheCorruptError: its bucket's fragment is damaged, or the row contradicts itself.
        """
        found = self._find(video_id)
        if found is None:
            raise VideoNotCachedError(
                f"no video {video_id!r} in this cache; ids are compared letter by letter, and "
                "cache.ids() lists them. To search: cache.query(\"video_id LIKE '%part of it%'\")"
            )
        return row_at(found, 0, video_id)

    def counts(self) -> tuple[int, int]:
        """How many videos are loadable, and how many are not; each bucket is read once for it."""
        if self._counts is None:
            num_ok = num_rows = 0
            for table in self._tables(["status"]):
                num_ok += int(pc.sum(pc.equal(table["status"], "ok")).as_py() or 0)
                num_rows += table.num_rows
            self._counts = num_ok, num_rows - num_ok
        return self._counts

    def ids(self) -> Iterator[str]:
        """Ids of the loadable videos, by bucket and sorted within; one bucket is in memory."""
        for table in self._tables(["video_id", "status"]):
            ids = table["video_id"].filter(pc.equal(table["status"], "ok"))
            yield from sorted(ids.to_pylist())

    def failed(self) -> pa.Table:
        """The rows of videos that have no tokens, ordered by ``video_id``."""
        tables = [t.filter(pc.not_equal(t["status"], "ok")) for t in self._tables(None)]
        return join_tables(tables).sort_by("video_id").combine_chunks()

    @property
    def table(self) -> pa.Table:
        """One row per video, ordered by ``video_id``, all in memory."""
        return join_tables(list(self._tables(None))).sort_by("video_id").combine_chunks()

    def select(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of the index, one row per video, in any order."""
        tables = [table.select(list(columns)) for table in self._tables(columns)]
        return join_tables(tables) if tables else INDEX_SCHEMA.empty_table().select(list(columns))

    def query(self, sql: str, *, columns: str = "*") -> pa.Table:
        """Ask in SQL, as ``query_table``; files are read by DuckDB itself.

        Raises:
            QueryError: what DuckDB objects to, in one line.
        """
        has_wildcard = any(letter in self._storage.location for letter in "*?[]")
        if not self._storage.can_rename or has_wildcard:  # DuckDB would take the paths for patterns
            return query_table(self.table, sql, columns=columns)
        return self._while_there(lambda parts: self._query_files(parts, sql, columns))

    def _query_files(self, parts: IndexParts, sql: str, columns: str) -> pa.Table:
        names = parts.buckets.values()
        paths = [self._storage.where(fragment_file(name)) for name in names]
        overlay = join_tables([self._no_rows(parts), *loose_winners(self._storage, parts)])
        try:
            return query_files(paths, overlay, sql, columns=columns)
        except QueryError:
            if set(names) <= set(fragment_names(self._storage)):
                raise
            raise FileNotFoundError(f"bucket fragments of {self._storage.location}") from None

    def _find(self, video_id: str) -> pa.Table | None:
        """The row of one video as a table, None when there is none."""
        try:
            bucket = bucket_of(video_id)
        except UnicodeEncodeError:
            return None
        return self._while_there(lambda parts: self._find_in(parts, bucket, video_id))

    def _find_in(self, parts: IndexParts, bucket: int, video_id: str) -> pa.Table | None:
        name = parts.buckets.get(bucket, "")
        theirs = self._file(name).find(video_id) if name else None
        if not parts.has_loose and theirs is not None and theirs.num_rows <= 1:
            return theirs if theirs.num_rows else None
        rows = [parts.loose.rows(parts.loose.of_video(video_id))]
        rows += [theirs] if theirs is not None else []
        if not any(table.num_rows for table in rows):
            return None
        return merge_tables([self._no_rows(parts), *rows])

    def _no_rows(self, parts: IndexParts) -> pa.Table:
        """No rows, with all further columns: buckets have the same ones, loose rows maybe more."""
        if self._like is None or self._like[0] is not parts:
            tables = [parts.loose.table.slice(0, 0)]
            if parts.buckets:
                tables.append(self._file(next(iter(parts.buckets.values()))).empty)
            self._like = parts, join_tables(tables)
        return self._like[1]

    def _tables(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """The rows that count, bucket by bucket, with ``columns`` at least."""
        needed = None if columns is None else list(dict.fromkeys([*MERGE_COLUMNS, *columns]))
        if not self._parts.buckets:
            yield self._parts.loose.settle(self._parts.loose.everywhere, columns=needed).winners
            return
        for bucket in range(NUM_BUCKETS):
            if bucket in self._parts.buckets or len(self._parts.loose.in_bucket(bucket)):
                settle = partial(bucket_winners, self._storage, bucket=bucket, columns=needed)
                yield self._while_there(settle)

    def _file(self, name: str) -> BucketFile:
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        opened = BucketFile(self._storage, name)
        with self._lock:
            self._open[name] = opened
            while len(self._open) > MAX_OPEN_BUCKETS:
                self._open.popitem(last=False)
        return opened

    def _while_there(self, ask: Callable[[IndexParts], T]) -> T:
        """What ``ask`` says of the parts; they are listed again when a bucket's file is gone."""
        for _ in range(MAX_LISTINGS):
            parts = self._parts
            try:
                return ask(parts)
            except FileNotFoundError:
                self._list_again(parts)
        raise vanishing(self._storage)

    def _list_again(self, parts: IndexParts) -> None:
        with self._lock:
            if self._parts is not parts:
                return
            self._parts = read_parts(self._storage, self._columns)
            for name in self._parts.buckets.values():
                try:
                    self._storage.stat(fragment_file(name))
                except FileNotFoundError:
                    if name in fragment_names(self._storage):
                        raise link_to_nothing(self._storage, name) from None
