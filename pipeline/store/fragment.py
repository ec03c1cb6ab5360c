"""Index fragments: Parquet files with one row per video of one commit."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage
from schemas.errors import CacheError, IndexCorruptError
from schemas.index import DIGEST_NAME, INDEX_SCHEMA, IndexRow
from schemas.video import Scalar

INDEX_FOLDER = "index"
FRAGMENT_SUFFIX = ".parquet"

ROW_GROUP_ROWS = 65536
LARGE_FRAGMENT_ROWS = 4096
"""Below this, dictionaries, statistics and threads cost more than they save."""

MAX_ROW_GROUP_BYTES = 512 * 2**20
"""A row group that declares more when unpacked is refused before it is unpacked."""

REQUIRED_COLUMNS = (
    "video_id",
    "path",
    "status",
    "attempts",
    "size_bytes",
    "modified_ns",
    "fingerprint",
    "format_version",
    "writer",
    "created_ns",
)
"""Columns without nulls, whatever became of the video."""


def fragment_file(name: str) -> str:
    """Where the fragment called ``name`` stands in its cache."""
    return f"{INDEX_FOLDER}/{name}{FRAGMENT_SUFFIX}"


def fragment_names(storage: Storage) -> list[str]:
    """The committed fragments, by name; other files in the folder are not ours to read."""
    names = [file.name for file in storage.files(INDEX_FOLDER)]
    stems = [n.removesuffix(FRAGMENT_SUFFIX) for n in names if n.endswith(FRAGMENT_SUFFIX)]
    return [stem for stem in stems if DIGEST_NAME.fullmatch(stem)]


def pack_fragment(rows: Sequence[IndexRow]) -> memoryview:
    """``rows`` as the bytes of a Parquet file, by video id, further columns last.

    Raises:
        CacheError: a further column has the name of a column of the index.
    """
    return pack_table(rows_to_table(sorted(rows, key=lambda row: row.video_id)))


def pack_table(table: pa.Table) -> memoryview:
    """Rows of the index as the bytes of a Parquet file whose row groups every reader accepts."""
    group_rows = min(ROW_GROUP_ROWS, max(1, table.num_rows))
    data = _packed(table, group_rows)
    while group_rows > 1 and _largest_group_bytes(data) > MAX_ROW_GROUP_BYTES:
        group_rows = max(1, group_rows // 4)
        data = _packed(table, group_rows)
    return memoryview(data)


def _largest_group_bytes(data: pa.Buffer) -> int:
    return max(_group_bytes(pq.read_metadata(pa.BufferReader(data))), default=0)


def _packed(table: pa.Table, group_rows: int) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    is_large = table.num_rows >= LARGE_FRAGMENT_ROWS
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=group_rows,
        use_dictionary=is_large,
        write_statistics=is_large,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _group_bytes(metadata: pq.FileMetaData) -> list[int]:
    """The bytes that each row group unpacks to, as the file declares them."""
    groups = range(metadata.num_row_groups)
    return [metadata.row_group(group).total_byte_size for group in groups]


def rows_to_table(rows: Sequence[IndexRow]) -> pa.Table:
    """One Arrow row per index row; a further column of mixed types is stored as text.

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
    kinds = {type(value) for value in values if value is not None}
    try:
        if len(kinds) <= 1 or kinds == {int, float}:
            return pa.array(values)
    except (pa.ArrowInvalid, OverflowError):
        pass
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def read_fragment(storage: Storage, name: str) -> pa.Table:
    """Read one fragment: the index columns in their order, further columns after them.

    Raises:
        FileNotFoundError: it is gone; somebody removed it since it was listed.
        IndexCorruptError: not a fragment of format 1, or one that unpacks to too much.
    """
    where = storage.where(fragment_file(name))
    try:
        with storage.open_input(fragment_file(name)) as file:
            return parse_fragment(file, where)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(where, error) from error


def parse_fragment(file: pa.NativeFile, where: str) -> pa.Table:
    """Read the fragment in ``file``; errors call it ``where``.

    Raises:
        IndexCorruptError: not a fragment of format 1, or one that unpacks to too much.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            _check_declared_size(where, parquet.metadata)
            num_rows = parquet.metadata.num_rows
            table = parquet.read(use_threads=num_rows >= LARGE_FRAGMENT_ROWS)
        table.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(where, error) from error
    return _checked_columns(where, table)


def _unreadable(where: str, error: Exception) -> IndexCorruptError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return IndexCorruptError(
        f"index fragment {where} cannot be read: {reason}. Move it away and build again; "
        "the videos it listed are encoded anew."
    )


def _check_declared_size(where: str, metadata: pq.FileMetaData) -> None:
    for group, declared in enumerate(_group_bytes(metadata)):
        if not 0 <= declared <= MAX_ROW_GROUP_BYTES:
            raise IndexCorruptError(
                f"index fragment {where}: row group {group} unpacks to {declared} bytes, "
                f"expected at most {MAX_ROW_GROUP_BYTES}"
            )


def _checked_columns(where: str, table: pa.Table) -> pa.Table:
    if not table.schema.equals(INDEX_SCHEMA):
        table = _index_columns_first(where, table)
    for name in REQUIRED_COLUMNS:
        if table[name].null_count:
            raise IndexCorruptError(
                f"index fragment {where}: column {name!r} holds {table[name].null_count} nulls"
            )
    return table


def _index_columns_first(where: str, table: pa.Table) -> pa.Table:
    if len(set(table.column_names)) != table.num_columns:
        raise IndexCorruptError(f"index fragment {where}: a column name is given twice")
    for field in INDEX_SCHEMA:
        if field.name not in table.column_names:
            raise IndexCorruptError(f"index fragment {where}: column {field.name!r} is missing")
        found = table.schema.field(field.name).type
        if not found.equals(field.type):
            raise IndexCorruptError(
                f"index fragment {where}: column {field.name!r} is {found}, expected {field.type}"
            )
    further = [name for name in table.column_names if name not in INDEX_SCHEMA.names]
    return table.select([*INDEX_SCHEMA.names, *further]).replace_schema_metadata(None)
