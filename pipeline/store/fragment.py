"""Index fragments: Parquet files with one row per video of one commit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from pipeline.storage import Storage
from pipeline.store.fragment_checks import (
    MAX_ROW_GROUP_BYTES,
    check_declared_size,
    check_nulls,
    check_schema,
    checked_columns,
    largest_group_bytes,
    unreadable,
    with_added_columns,
)
from schemas.columns import column_of, joined_type, type_of
from schemas.errors import CacheError, IndexCorruptError
from schemas.index import INDEX_SCHEMA, IndexRow
from schemas.video import Scalar

INDEX_FOLDER = "index"
FRAGMENT_SUFFIX = ".parquet"

NUM_BUCKETS = 256

FRAGMENT_NAME = re.compile(r"(?:([0-9a-f]{2})-)?[0-9a-f]{64}")

ROW_GROUP_ROWS = 65536
LARGE_FRAGMENT_ROWS = 4096
"""Below this, dictionaries, statistics and threads cost more than they save."""


def fragment_file(name: str) -> str:
    """Where the fragment called ``name`` stands in its cache."""
    return f"{INDEX_FOLDER}/{name}{FRAGMENT_SUFFIX}"


def fragment_names(storage: Storage) -> list[str]:
    """The committed fragments, by name; other files in the folder are not ours to read."""
    names = [file.name for file in storage.files(INDEX_FOLDER)]
    stems = [n.removesuffix(FRAGMENT_SUFFIX) for n in names if n.endswith(FRAGMENT_SUFFIX)]
    return [stem for stem in stems if FRAGMENT_NAME.fullmatch(stem)]


def bucket_of(video_id: str) -> int:
    """The bucket, 0 to 255, of a video: the top byte of the xxh3_64 of its id."""
    return int(xxh3_64_intdigest(video_id.encode()) >> 56)


def buckets_of(ids: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """The bucket of each id, ``(rows,)``.

    Raises:
        UnicodeDecodeError: an id is not valid UTF-8.
    """
    return np.fromiter(map(bucket_of, ids.to_pylist()), np.uint8, len(ids))


def named_bucket(name: str) -> int | None:
    """The bucket whose rows the fragment called ``name`` holds; None when it may hold any."""
    found = FRAGMENT_NAME.fullmatch(name)
    return int(found[1], 16) if found and found[1] else None


def pack_fragment(rows: Sequence[IndexRow]) -> memoryview:
    """``rows`` as the bytes of a Parquet file, by video id, further columns last.

    Raises:
        CacheError: a further column has the name of a column of the index.
    """
    return pack_table(rows_to_table(sorted(rows, key=lambda row: row.video_id)))


def pack_table(table: pa.Table, *, for_scans: bool | None = None) -> memoryview:
    """Rows of the index as the bytes of a Parquet file whose row groups every reader accepts.

    Args:
        table: the rows.
        for_scans: with dictionaries and statistics; by default where there are many rows.
    """
    if for_scans is None:
        for_scans = table.num_rows >= LARGE_FRAGMENT_ROWS
    group_rows = min(ROW_GROUP_ROWS, max(1, table.num_rows))
    data = _packed(table, group_rows, for_scans)
    while group_rows > 1 and largest_group_bytes(data) > MAX_ROW_GROUP_BYTES:
        group_rows = max(1, group_rows // 4)
        data = _packed(table, group_rows, for_scans)
    return memoryview(data)


def _packed(table: pa.Table, group_rows: int, for_scans: bool) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=group_rows,
        use_dictionary=for_scans,
        write_statistics=for_scans,
        write_page_checksum=True,
    )
    return sink.getvalue()


def rows_to_table(rows: Sequence[IndexRow]) -> pa.Table:
    """One Arrow row per index row; a further column whose types do not join is stored as text.

    Raises:
        CacheError: a further column has the name of a column of the index.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.extra))
    taken = sorted(set(names) & set(INDEX_SCHEMA.names))
    if taken:
        raise CacheError(
            f"further columns {taken} have names of the index; rename them in the corpus manifest"
        )
    table = pa.Table.from_pylist([row.to_record() for row in rows], schema=INDEX_SCHEMA)
    for name in names:
        table = table.append_column(name, _column([row.extra.get(name) for row in rows]))
    return table


def _column(values: Sequence[Scalar]) -> pa.Array:
    kind = joined_type(map(type_of, values))
    try:
        if kind is not None:
            return column_of(values, kind)
    except (pa.ArrowInvalid, OverflowError):
        pass
    return pa.array([None if value is None else str(value) for value in values], pa.string())


@dataclass(frozen=True, slots=True)
class FragmentHead:
    """What a fragment's footer says: how many rows, and which columns."""

    num_rows: int
    schema: pa.Schema


def read_head(storage: Storage, name: str) -> FragmentHead:
    """Read the footer of a fragment; raises as ``read_fragment``."""
    where = storage.where(fragment_file(name))
    try:
        with storage.open_input(fragment_file(name)) as file, pq.ParquetFile(file) as parquet:
            num_rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(where, error) from error
    return FragmentHead(num_rows, checked_columns(where, schema.empty_table()).schema)


def read_fragment(storage: Storage, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read one fragment: the index columns in their order, further columns after them.

    Args:
        storage: where the cache lies.
        name: of the fragment.
        columns: columns of the index that are read, with ``video_id``; None reads all there are.

    Raises:
        FileNotFoundError: it is gone; somebody removed it since it was listed.
        IndexCorruptError: not a fragment of format 1, or one that unpacks to too much.
        CacheUnreachableError: it cannot be read now.
    """
    where = storage.where(fragment_file(name))
    try:
        with storage.open_input(fragment_file(name)) as file:
            table = parse_fragment(file, where, columns)
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise unreadable(where, error) from error
    _check_bucket(where, name, table)
    return table


def _check_bucket(where: str, name: str, table: pa.Table) -> None:
    bucket = named_bucket(name)
    if bucket is None:
        return
    try:
        strangers = np.flatnonzero(buckets_of(table["video_id"]) != bucket)
    except UnicodeDecodeError as error:
        raise unreadable(where, error) from error
    if strangers.size:
        video_id = table["video_id"][int(strangers[0])].as_py()
        raise IndexCorruptError(
            f"index fragment {where}: video {video_id!r} is of bucket {bucket_of(video_id):02x}, "
            f"the file's name says {bucket:02x}. Move the file away and build again."
        )


def parse_fragment(file: pa.NativeFile, where: str, columns: list[str] | None = None) -> pa.Table:
    """Read the fragment in ``file``; errors call it ``where``.

    Raises:
        IndexCorruptError: not a fragment of format 1, or one that unpacks to too much.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            check_declared_size(where, parquet.metadata)
            num_rows = parquet.metadata.num_rows
            schema = parquet.schema_arrow
            table = parquet.read(columns, use_threads=num_rows >= LARGE_FRAGMENT_ROWS)
        table.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(where, error) from error
    if columns is None:
        return checked_columns(where, table)
    check_schema(where, schema)
    check_nulls(where, table)
    return with_added_columns(table, columns).select(columns).replace_schema_metadata(None)
