"""SQL over the index, by DuckDB, which sees this one table and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from schemas.errors import QueryError

if TYPE_CHECKING:
    import duckdb

_SETTINGS = {
    "TimeZone": "'UTC'",
    "python_enable_replacements": "false",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}
"""Settings after which a query can neither read nor write a file, nor undo them."""

_EXPECTED = (
    "expected one SELECT over index (or FROM, WITH, VALUES, PIVOT, DESCRIBE, SUMMARIZE, EXPLAIN), "
    "or a condition such as keep_ratio < 0.4"
)

_EXPLAIN = re.compile(
    r"""(?:\s|--[^\n]*\n|/\*.*?\*/)*          # blanks and comments
    EXPLAIN\b\s*(?:ANALY[SZ]E\b)?
    \s*(?:\(\s*(?:FORMAT|ANALY[SZ]E)\b[^()]*\))?  # options""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

_AS_TEXT = frozenset({"TIME WITH TIME ZONE", "BIT", "BIGNUM"})
"""Types of DuckDB that Arrow does not have."""

_COPY = re.compile(r"\bcopy\b", re.IGNORECASE)


def query_table(table: pa.Table, sql: str, *, columns: str = "*") -> pa.Table:
    """Run ``sql`` over ``table``, which it calls ``index``.

    Args:
        table: the index.
        sql: one statement that DuckDB takes for a query; or what follows FROM index, such as
            ORDER BY and LIMIT; or the condition of a WHERE clause and what follows it.
        columns: what is selected when ``sql`` is no whole statement.

    Returns:
        The answer. Where two columns have one name, the later one is named as DuckDB names it in
        a table: ``video_id_1``.

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
        files = _list_of(map(_quoted, paths))
        connection.execute(f"SET allowed_paths = {files}")
        names = ", ".join(_quoted(name, '"') for name in overlay.column_names)
        connection.sql(  # DuckDB finds the variable, and gives it no name that a query could use
            f"SELECT {names} FROM ("
            f"SELECT * FROM read_parquet({files}, union_by_name = true) "
            "WHERE video_id NOT IN (SELECT video_id FROM overlay) "
            "UNION ALL BY NAME SELECT * FROM overlay)"
        ).create_view("index")

    return _ask(sql, columns, make_view)


def _ask(
    sql: str, columns: str, make_index: Callable[[duckdb.DuckDBPyConnection], object]
) -> pa.Table:
    import duckdb

    if not isinstance(sql, str):
        raise QueryError(f"the query is {sql!r}; expected SQL as text")
    if not sql.strip():
        raise QueryError("the query is empty; expected a condition such as keep_ratio < 0.4")
    with duckdb.connect(":memory:") as connection:
        try:
            make_index(connection)
            for name, value in _SETTINGS.items():
                connection.execute(f"SET {name} = {value}")
            return _answer(connection.sql(_whole_statement(connection, sql, columns)))
        except (duckdb.Error, pa.ArrowException, UnicodeError) as error:
            raise QueryError(f"query {sql!r}: {_one_line(str(error))}") from error


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace(quote, 2 * quote) + quote


def _list_of(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


def _whole_statement(connection: duckdb.DuckDBPyConnection, sql: str, columns: str) -> str:
    """``sql`` as it is, as a condition, or as what follows FROM: whichever DuckDB can parse.

    Raises:
        QueryError: it is not one query.
        duckdb.ParserException: DuckDB can parse none of them.
    """
    import duckdb

    selected = f"SELECT {columns} FROM index"
    failures = []
    for form in (sql, f"{selected} WHERE {sql}", f"{selected} {sql}"):
        try:
            statements = connection.extract_statements(form)
        except duckdb.ParserException as error:
            failures.append(error)
            continue
        if len(statements) != 1 or not _is_query(connection, form):
            raise QueryError(f"query {sql!r}: {_EXPECTED}")
        return form
    raise _nearest(sql, *failures)


def _is_query(connection: duckdb.DuckDBPyConnection, statement: str) -> bool:
    """Whether ``statement``, or what it explains, is of a kind that cannot write.

    That is what can stand in parentheses after FROM, where no COPY may be in a WITH clause. DuckDB
    takes PIVOT apart, so that there the word itself is refused.

    Raises:
        duckdb.BinderException: a COPY in a WITH clause.
    """
    import duckdb

    kinds = duckdb.StatementType
    inner = _EXPLAIN.sub("", _without_semicolon(statement), count=1)
    in_parentheses = f"FROM ({inner}\n)"
    try:
        found = [connection.extract_statements(each) for each in (inner, in_parentheses)]
    except duckdb.ParserException:
        return False
    types = [each.type for statements in found for each in statements]
    has_copy = _COPY.search(inner) is not None
    if types == [kinds.SELECT] * 2:
        if has_copy:
            connection.sql(in_parentheses)
        return True
    return types == [kinds.MULTI] * 2 and not has_copy


def _without_semicolon(statement: str) -> str:
    import duckdb

    data = statement.encode()
    end = len(data)
    for begin, kind in reversed(duckdb.tokenize(statement)):
        if kind == duckdb.token_type.comment or data[begin:end].strip() == b";":
            end = begin
        else:
            break
    return data[:end].decode()


def _nearest(
    sql: str, as_it_is: Exception, as_condition: Exception, as_clauses: Exception
) -> Exception:
    """Of what DuckDB said of each reading of ``sql`` that which its writer most likely needs."""
    import duckdb

    data = sql.encode()
    tokens = [token for token in duckdb.tokenize(sql) if token[1] != duckdb.token_type.comment]
    (begin, kind), (end, _) = (*tokens, (len(data), None), (len(data), None))[:2]
    if kind != duckdb.token_type.keyword:
        return as_condition
    at_once = f'at or near "{data[begin:end].decode(errors="replace").strip()}"'
    got_further = (each for each in (as_clauses, as_condition) if at_once not in str(each))
    return next(got_further, as_it_is)


def _answer(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    kinds = [str(kind) for kind in relation.types]
    if not _AS_TEXT.isdisjoint(kinds):
        shown = []
        for place, (name, kind) in enumerate(zip(relation.columns, kinds, strict=True), start=1):
            cast = "::VARCHAR" if kind in _AS_TEXT else ""
            shown.append(f"#{place}{cast} AS " + _quoted(name, '"'))
        relation = relation.project(", ".join(shown))
    table = relation.to_arrow_table()
    names = [name.lower() for name in table.column_names]
    if len(set(names)) == len(names):
        return table
    return table.rename_columns(list(relation.limit(0).fetchnumpy()))


def _one_line(message: str) -> str:
    """DuckDB's words and suggestions, without the picture of the query below them."""
    words = message.split("\nLINE ", 1)[0]
    return " ".join(words.split())
