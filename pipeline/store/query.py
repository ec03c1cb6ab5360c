"""SQL over the index, by DuckDB, which sees this one table and nothing else."""

from __future__ import annotations

import re
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
    import duckdb

    if not sql.strip():
        raise QueryError("the query is empty; expected a condition such as keep_ratio < 0.4")
    statement = sql if is_select(sql) else f"SELECT {columns} FROM index WHERE {sql}"
    with duckdb.connect(":memory:") as connection:
        connection.register("index", table)
        for name, value in _LOCKS.items():
            connection.execute(f"SET {name} = {value}")
        try:
            _require_one_query(connection.extract_statements(statement), sql)
            return connection.sql(statement).to_arrow_table()
        except (duckdb.Error, UnicodeError) as error:
            raise QueryError(f"query {sql!r}: {_one_line(str(error))}") from error


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
