"""Bucket fragments: sorted rows of one 256th of the videos, and a directory to find one by.

The directory lies between the last row group and the Parquet footer, where other readers do not
look: JSON, its xxh3_64, its length and a magic word. It says where each row group begins in the
order of ids and where it is described in the footer, so that a look-up reads a few kilobytes of
a footer of hundreds, and one small row group.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from pipeline.storage import Storage
from pipeline.store.footer import cut_footer, footer_of_group
from pipeline.store.fragment import (
    MAX_ROW_GROUP_BYTES,
    check_declared_size,
    checked_columns,
    fragment_file,
    largest_group_bytes,
    read_fragment,
    unreadable,
)
from schemas.errors import IndexCorruptError
from schemas.index import INDEX_SCHEMA

BUCKET_GROUP_ROWS = 256
"""Rows of one row group: what a look-up decodes. Of fewer, the fixed cost of each column outweighs
what is saved, and footers grow."""

_MAGIC = b"TRBUCKET"
_TRAILER_BYTES = 8 + 8 + len(_MAGIC)
_FOOTER_END_BYTES = 8

_MAX_GROUPS_HEADER_BYTES = 24
"""The number of rows and the head of the list of row groups are no longer in any footer."""

_DAMAGE = (
    *(pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError),
    *(AttributeError, UnicodeError, RecursionError),
)
"""What reading a damaged or hostile file may raise."""

_DENSE_COLUMNS = frozenset({"path", "content_sha256", "key", "shard"})
"""Index columns that zstd makes much smaller than lz4; unpacking costs a look-up more."""


def pack_bucket(table: pa.Table, *, group_rows: int = BUCKET_GROUP_ROWS) -> memoryview:
    """Rows of one bucket, distinct and by ``video_id``, as the bytes of a bucket fragment."""
    data = _packed(table, group_rows)
    while group_rows > 1 and largest_group_bytes(data) > MAX_ROW_GROUP_BYTES:
        group_rows = max(1, group_rows // 4)
        data = _packed(table, group_rows)
    begin = data.size - _FOOTER_END_BYTES - int.from_bytes(data[-8:-4].to_pybytes(), "little")
    footer = data[begin:-_FOOTER_END_BYTES].to_pybytes()
    directory = _pack_directory(table["video_id"], footer, group_rows)
    return memoryview(b"".join([data[:begin], directory, data[begin:]]))


def _packed(table: pa.Table, group_rows: int) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    kinds = _leaf_kinds(table.schema)
    index_kinds = _leaf_kinds(INDEX_SCHEMA)
    dense = _DENSE_COLUMNS | {
        n for n, kind in kinds.items() if n not in index_kinds and kind == "BYTE_ARRAY"
    }
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows,
        compression={n: "zstd" if n in dense else "lz4" for n in kinds},
        use_dictionary=False,
        write_statistics=["video_id"],
        write_page_checksum=True,
    )
    return sink.getvalue()


def _leaf_kinds(schema: pa.Schema) -> dict[str, str]:
    """The physical type of each leaf of ``schema`` by its path, which is what Parquet stores."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    leaves = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return {leaves.column(n).path: leaves.column(n).physical_type for n in range(len(leaves))}


def _pack_directory(ids: pa.ChunkedArray, footer: bytes, group_rows: int) -> bytes:
    cut = cut_footer(footer)
    groups = []
    for number, (begin, end) in enumerate(cut.groups):
        place = number * group_rows
        num_rows = min(group_rows, len(ids) - place)
        described = footer_of_group(
            footer[: cut.head], footer[begin:end], footer[cut.tail :], num_rows
        )
        groups.append([ids[place].as_py(), num_rows, begin, end, xxh3_64_intdigest(described)])
    body = json.dumps({"head": cut.head, "tail": cut.tail, "groups": groups}).encode()
    digest = xxh3_64_intdigest(body).to_bytes(8, "little")
    return body + digest + len(body).to_bytes(8, "little") + _MAGIC


@dataclass(frozen=True, slots=True)
class _Group:
    """One row group: its first id and number of rows, and its description in the footer."""

    first_id: str
    num_rows: int
    begin: int
    end: int
    digest: int


class BucketFile:
    """One bucket fragment, open for look-ups; threads may share it.

    Without a directory, as another program may have written it, it is read whole at first use.

    Raises:
        FileNotFoundError: it is gone.
        IndexCorruptError: it cannot be read.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._where = storage.where(fragment_file(name))
        self._whole: pa.Table | None = None
        self._groups: list[_Group] = []
        try:
            self._file = storage.open_input(fragment_file(name))
            self._read_directory()
        except (FileNotFoundError, IndexCorruptError):
            raise
        except _DAMAGE as error:
            raise unreadable(self._where, error) from error

    def find(self, video_id: str) -> pa.Table:
        """The rows of ``video_id``, with all columns; usually one, or none.

        Raises:
            FileNotFoundError: it is gone.
            IndexCorruptError: what is read for this is damaged.
        """
        if not self._groups:
            table = self._read_whole()
            return table.filter(pc.equal(table["video_id"], video_id))
        number = max(0, bisect_right(self._groups, video_id, key=lambda group: group.first_id) - 1)
        try:
            table = self._open_group(number).read_row_group(0, use_threads=False)
            ids = table["video_id"].combine_chunks()
            self._check_order(number, ids)
            place = pc.index(ids, video_id).as_py()
            if place < 0:
                return self.empty
            table = table.slice(place, 1)
            table.validate()
        except IndexCorruptError:
            raise
        except _DAMAGE as error:
            raise unreadable(self._where, error) from error
        return checked_columns(self._where, table)

    def check(self) -> None:
        """Read every row group as a look-up does; raises as ``find``."""
        for group in self._groups:
            self.find(group.first_id)

    @cached_property
    def empty(self) -> pa.Table:
        """No row, with the columns of this file; raises as ``find``."""
        if not self._groups:
            return self._read_whole().slice(0, 0)
        try:
            schema = self._open_group(0).schema_arrow
        except _DAMAGE as error:
            raise unreadable(self._where, error) from error
        return checked_columns(self._where, schema.empty_table())

    def _read_whole(self) -> pa.Table:
        if self._whole is None:
            self._whole = read_fragment(self._storage, self._name)
        return self._whole

    def _read_directory(self) -> None:
        size = self._file.size()
        end = self._file.read_at(_FOOTER_END_BYTES, max(0, size - _FOOTER_END_BYTES))
        self._footer_begin = size - _FOOTER_END_BYTES - int.from_bytes(end[:4], "little")
        self._footer_end = size - _FOOTER_END_BYTES
        place = self._footer_begin - _TRAILER_BYTES
        if place < 0:
            return
        trailer = self._file.read_at(_TRAILER_BYTES, place)
        if trailer[16:] != _MAGIC:
            return
        length = int.from_bytes(trailer[8:16], "little")
        if length > place:
            raise ValueError(f"a directory of {length} bytes before byte {place}")
        body = self._file.read_at(length, place - length)
        if xxh3_64_intdigest(body).to_bytes(8, "little") != trailer[:8]:
            raise ValueError("the digest of its directory does not match")
        self._unpack_directory(json.loads(body))

    def _unpack_directory(self, directory: Any) -> None:
        """Take over what the directory says, if it tells of every byte of the footer's groups."""
        head, tail = int(directory["head"]), int(directory["tail"])
        groups = [_Group(*fields) for fields in directory["groups"]]
        places = [head, *(place for group in groups for place in (group.begin, group.end)), tail]
        ids = [group.first_id.encode() for group in groups]
        if (
            not 0 <= head <= tail <= self._footer_end - self._footer_begin
            or places != sorted(places)
            or any(end != begin for end, begin in zip(places[2::2], places[3::2], strict=True))
            or places[1] - head > _MAX_GROUPS_HEADER_BYTES
            or any(one >= other for one, other in pairwise(ids))
        ):
            raise ValueError("its directory does not describe its footer")
        self._head = self._file.read_at(head, self._footer_begin)
        self._tail = self._file.read_at(
            self._footer_end - self._footer_begin - tail, self._footer_begin + tail
        )
        self._groups = groups

    def _open_group(self, number: int) -> pq.ParquetFile:
        """The file as if it had this row group alone."""
        group = self._groups[number]
        found = self._file.read_at(group.end - group.begin, self._footer_begin + group.begin)
        footer = footer_of_group(self._head, found, self._tail, group.num_rows)
        if xxh3_64_intdigest(footer) != group.digest:
            raise ValueError(f"the digest of the footer of row group {number} does not match")
        metadata = pq.read_metadata(pa.BufferReader(footer))
        check_declared_size(self._where, metadata)
        return pq.ParquetFile(self._file, metadata=metadata, page_checksum_verification=True)

    def _check_order(self, number: int, ids: pa.StringArray) -> None:
        """See that a row group holds the ids that the directory says, in order."""
        follows = self._groups[number + 1 : number + 2]
        if (
            len(ids) != self._groups[number].num_rows
            or ids[0].as_py() != self._groups[number].first_id
            or (follows and ids[-1].as_py() >= follows[0].first_id)
            or pc.less(ids[:-1], ids[1:]).false_count
        ):
            raise ValueError(f"the ids of row group {number} are not those of the directory")
