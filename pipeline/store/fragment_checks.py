"""What a fragment must be before it is believed: its columns, and what it unpacks to.

Errors call the file ``where``.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import is_outage
from schemas.errors import CacheError, CacheUnreachableError, IndexCorruptError
from schemas.index import ADDED_COLUMNS, INDEX_SCHEMA

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


def unreadable(where: str, error: Exception) -> CacheError:
    """The error of a fragment that ``error`` kept from being read: damage, or an outage."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if is_outage(error):
        return CacheUnreachableError(f"index fragment {where} cannot be read now: {reason}")
    return IndexCorruptError(
        f"index fragment {where} cannot be read: {reason}. Take it out of service with "
        "`tokenreel verify CACHE --discard`; the next build encodes what it listed anew."
    )


def check_declared_size(where: str, metadata: pq.FileMetaData) -> None:
    """Refuse a file before it is unpacked to more than ``MAX_ROW_GROUP_BYTES`` at once.

    Raises:
        IndexCorruptError: a row group declares more, or less than nothing.
    """
    for group, declared in enumerate(_group_bytes(metadata)):
        if not 0 <= declared <= MAX_ROW_GROUP_BYTES:
            raise IndexCorruptError(
                f"index fragment {where}: row group {group} unpacks to {declared} bytes, "
                f"expected at most {MAX_ROW_GROUP_BYTES}"
            )


def largest_group_bytes(data: pa.Buffer) -> int:
    """The bytes that the largest row group of a Parquet file unpacks to, as it declares them."""
    return max(_group_bytes(pq.read_metadata(pa.BufferReader(data))), default=0)


def _group_bytes(metadata: pq.FileMetaData) -> list[int]:
    """The bytes that each row group unpacks to, as the file declares them."""
    groups = range(metadata.num_row_groups)
    return [metadata.row_group(group).total_byte_size for group in groups]


def checked_columns(where: str, table: pa.Table) -> pa.Table:
    """``table`` with the index columns first, without metadata; added ones filled with nulls.

    Raises:
        IndexCorruptError: a column is missing, of another type, given twice, or holds nulls.
    """
    if not table.schema.equals(INDEX_SCHEMA):
        check_schema(where, table.schema)
        table = with_added_columns(table, ADDED_COLUMNS)
        further = [name for name in table.column_names if name not in INDEX_SCHEMA.names]
        table = table.select([*INDEX_SCHEMA.names, *further]).replace_schema_metadata(None)
    check_nulls(where, table)
    return table


def with_added_columns(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """``table`` with those of ``names`` that it lacks, full of nulls."""
    for name in names:
        if name in ADDED_COLUMNS and name not in table.column_names:
            field = INDEX_SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def check_nulls(where: str, table: pa.Table) -> None:
    """Look for nulls in those of ``REQUIRED_COLUMNS`` that ``table`` has.

    Raises:
        IndexCorruptError: there are some.
    """
    known = set(table.column_names)
    for name in REQUIRED_COLUMNS:
        if name in known and table[name].null_count:
            raise IndexCorruptError(
                f"index fragment {where}: column {name!r} holds {table[name].null_count} nulls"
            )


def check_schema(where: str, schema: pa.Schema) -> None:
    """Look for the columns of the index; further ones are free, added ones may all be missing.

    Raises:
        IndexCorruptError: one is missing or of another type, or a name is given twice.
    """
    if len(set(schema.names)) != len(schema.names):
        raise IndexCorruptError(f"index fragment {where}: a column name is given twice")
    is_older = not set(ADDED_COLUMNS) & set(schema.names)
    for field in INDEX_SCHEMA:
        if is_older and field.name in ADDED_COLUMNS:
            continue
        if field.name not in schema.names:
            raise IndexCorruptError(f"index fragment {where}: column {field.name!r} is missing")
        found = schema.field(field.name).type
        if not found.equals(field.type):
            raise IndexCorruptError(
                f"index fragment {where}: column {field.name!r} is {found}, expected {field.type}"
            )
