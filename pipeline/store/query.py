"""SQL over the index, by DuckDB, which sees this one table and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from schemas.errors import QueryError

if TYPE_CHECKING:
    import duckdb

_IS_STATEMENT = re.compile(r"[\s(]*(select|with)\b", re.IGNORECASE)

_LOCKS = {
    "python_enable_replacements": "false",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}
"""Settings after which a query can neither read nor write a file, nor undo them."""


def is_select(sql: str) -> bool:
    """Whether ``sql`` is a whole statement, and not the condition of a WHERE clause."""
    return _IS_STATEMENT.match(sql) is not None


def query_table(table: pa.Table, sql: str, *, columns: str = "*") -> pa.Table:
    """Run ``sql`` over ``table``, which it calls ``index``.

    Args:
        table: the index.
        sql: a SELECT (or WITH ... SELECT) over ``index``, or the condition of a WHERE clause,
            which may be followed by ORDER BY and LIMIT.
        columns: what is selected when ``sql`` is a condition.

    Raises:
        QueryError: what DuckDB objects to, in one line, or SQL that is not one query.
    """
    return _ask(sql, columns, lambda connection: connection.register("index", table))


def query_files(
    paths: Sequence[str], overlay: pa.Table, sql: str, *, columns: str = "*"
) -> pa.Table:
    """As ``query_table`` over Parquet files, which DuckDB may read, and no others.

    Args:
        paths: files with one row per video.
        overlay: rows that stand in place of those of the same ``video_id``; its columns are those
            of ``index``.
        sql: as for ``query_table``.
        columns: as for ``query_table``.

    Raises:
        QueryError: as ``query_table``, or a file cannot be read.
    """

    def make_view(connection: duckdb.DuckDBPyConnection) -> None:
        connection.register("overlay", overlay)
        files = _list_of(map(_quoted, paths))
        connection.execute(f"SET allowed_paths = {files}")
        names = ", ".join(_quoted(name, '"') for name in overlay.column_names)
        connection.execute(
            f"CREATE VIEW index AS SELECT {names} FROM ("
            f"SELECT * FROM read_parquet({files}, union_by_name = true) "
            "WHERE video_id NOT IN (SELECT video_id FROM overlay) "
            "UNION ALL BY NAME SELECT * FROM overlay)"
        )

    return _ask(sql, columns, make_view)


def _ask(
    sql: str, columns: str, make_index: Callable[[duckdb.DuckDBPyConnection], object]
) -> pa.Table:
    import duckdb

    if not sql.strip():
        raise QueryError("the query is empty; expected a condition such as keep_ratio < 0.4")
    statement = sql if is_select(sql) else f"SELECT {columns} FROM index WHERE {sql}"
    with duckdb.connect(":memory:") as connection:
        try:
            make_index(connection)
            for name, value in _LOCKS.items():
                connection.execute(f"SET {name} = {value}")
            _require_one_query(connection.extract_statements(statement), sql)
            return connection.sql(statement).to_arrow_table()
        except (duckdb.Error, UnicodeError) as error:
            raise QueryError(f"query {sql!r}: {_one_line(str(error))}") from error


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace(quote, 2 * quote) + quote


def _list_of(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


def _require_one_query(statements: list[duckdb.Statement], sql: str) -> None:
    import duckdb

    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise QueryError(
            f"query {sql!r}: expected one SELECT over index, or a condition such as "
            "keep_ratio < 0.4"
        )


def _one_line(message: str) -> str:
    """DuckDB's words and suggestions, without the picture of the query below them."""
    words = message.split("\nLINE ", 1)[0]
    return " ".join(words.split())
