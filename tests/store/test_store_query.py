"""SQL over the index as people write it, in memory and over files, and what it may not do."""

import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.query import query_files, query_table
from schemas.errors import QueryError

TABLE = pa.table(
    {
        "video_id": ["a", "b", "c", "d"],
        "codec": ["h264", "hevc", "h264", None],
        "tokens_after": pa.array([4, 3, 2, 1], pa.int64()),
        "keep_ratio": [0.4, 0.3, 0.2, 0.1],
    }
)


@pytest.fixture(params=["in memory", "in files"])
def ask(request, tmp_path):
    """Ask the table, wherever it is."""
    if request.param == "in memory":
        return lambda sql, **options: query_table(TABLE, sql, **options)
    pq.write_table(TABLE.slice(0, 3), tmp_path / "a.parquet")
    return lambda sql, **options: query_files(
        [str(tmp_path / "a.parquet")], TABLE.slice(3), sql, **options
    )


@pytest.mark.parametrize(
    ("sql", "ids"),
    [
        ("ORDER BY tokens_after", ["d", "c", "b", "a"]),
        ("order by tokens_after limit 2", ["d", "c"]),
        ("LIMIT 3", ["a", "b", "c"]),
        ("  \n LIMIT 1;  ", ["a"]),
        ("WHERE keep_ratio < 0.25 ORDER BY ALL", ["c", "d"]),
        ("keep_ratio < 0.25", ["c", "d"]),
        ("keep_ratio < 0.25;", ["c", "d"]),
        ("\n\n  keep_ratio < 0.25 -- few", ["c", "d"]),
        ("-- few\nkeep_ratio < 0.25", ["c", "d"]),
        ("/* few */ keep_ratio < 0.25 ORDER BY video_id DESC", ["d", "c"]),
        ("(keep_ratio < 0.25)", ["c", "d"]),
        ("(SELECT 2) > tokens_after", ["d"]),
        ("codec = 'select' OR codec = 'hevc'", ["b"]),
        ("-- all\nSELECT video_id FROM index", ["a", "b", "c", "d"]),
        ("/* all\n of it */ SELECT video_id FROM index;", ["a", "b", "c", "d"]),
        ("FROM index SELECT video_id LIMIT 2", ["a", "b"]),
        ("FROM index", ["a", "b", "c", "d"]),
        ("TABLE index", ["a", "b", "c", "d"]),
        ("(SELECT * FROM index LIMIT 1)", ["a"]),
        ("WITH few AS (FROM index LIMIT 2) FROM few", ["a", "b"]),
        ("GROUP BY ALL ORDER BY ALL", ["a", "b", "c", "d"]),
        ("QUALIFY row_number() OVER (PARTITION BY codec ORDER BY video_id) > 1", ["c"]),
    ],
)
def test_what_duckdb_takes_for_a_query_or_a_part_of_one_is_answered(ask, sql, ids):
    found = ask(sql)["video_id"].to_pylist()
    assert sorted(found) == sorted(ids)
    assert "ORDER" not in sql.upper() or found == ids


def test_statements_that_describe_or_turn_the_table_are_answered(ask):
    assert ask("DESCRIBE index")["column_name"].to_pylist() == TABLE.column_names
    assert ask("SUMMARIZE index").num_rows == 4
    assert ask("SHOW TABLES").num_rows >= 1
    assert ask("VALUES (1), (2)").num_rows == 2
    turned = ask("PIVOT index ON codec USING count(*) GROUP BY video_id")
    assert turned.column_names == ["video_id", "h264", "hevc"]
    assert ask("UNPIVOT index ON tokens_after").num_rows == 4
    assert "explain_value" in ask("EXPLAIN SELECT 1").column_names
    assert "explain_value" in ask("EXPLAIN ANALYZE FROM index").column_names
    assert "explain_value" in ask("-- why?\nexplain (FORMAT json) FROM index; -- so").column_names
    assert ask("SELECT codec AS copy FROM index; -- a copy").num_rows == 4


def test_clauses_show_the_columns_that_a_condition_shows(ask):
    for sql in ("LIMIT 1", "ORDER BY tokens_after", "keep_ratio < 0.25", "WHERE true"):
        assert ask(sql, columns="codec").column_names == ["codec"]


def test_columns_of_one_name_are_all_answered_and_named_as_in_a_table(ask):
    both = ask("SELECT a.video_id, b.video_id FROM index a JOIN index b USING (tokens_after)")
    assert both.column_names == ["video_id", "video_id_1"]
    assert both["video_id_1"].to_pylist() == both["video_id"].to_pylist()
    found = ask("SELECT 1 AS x, 2 AS X, 3 AS x_1, 4 AS x FROM index LIMIT 1")
    assert found.num_columns == len({name.lower() for name in found.column_names}) == 4
    assert [column[0].as_py() for column in found.columns] == [1, 2, 3, 4]


def test_points_in_time_are_shown_in_utc_whatever_the_machines_zone(ask):
    found = ask("SELECT TIMESTAMPTZ '2024-05-06 12:00:00+02' AS t FROM index LIMIT 1")
    assert found.schema.field("t").type == pa.timestamp("us", "UTC")


def test_a_sum_keeps_all_its_digits(ask):
    assert ask("SELECT sum(tokens_after) AS n FROM index")["n"][0].as_py() == decimal.Decimal(10)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("-- nothing", "expected one SELECT"),
        ("SELECT 1; SELECT 2", "expected one SELECT"),
        ("1 = 1; DROP VIEW index", "expected one SELECT"),
        ("LIMIT 3; SELECT 1", "expected one SELECT"),
        ("DROP VIEW index", "expected one SELECT"),
        ("DELETE FROM index", "expected one SELECT"),
        ("CREATE TABLE x AS SELECT 1", "expected one SELECT"),
        ("COPY index TO '{folder}/out.csv'", "expected one SELECT"),
        ("EXPLAIN ANALYZE COPY index TO '{folder}/out.csv'", "expected one SELECT"),
        ("EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1", "expected one SELECT"),
        ("EXPLAIN DROP VIEW index", "expected one SELECT"),
        ("EXPLAIN LOAD httpfs", "expected one SELECT"),
        ("EXPLAIN ANALYZE EXECUTE x", "expected one SELECT"),
        ("CREATE TABLE x AS PIVOT index ON codec", "expected one SELECT"),
        ("FROM overlay", "overlay"),
        ("EXPORT DATABASE '{folder}/out'", "expected one SELECT"),
        ("ATTACH '{folder}/out.db'", "expected one SELECT"),
        ("INSTALL httpfs", "expected one SELECT"),
        ("LOAD httpfs", "expected one SELECT"),
        ("SET enable_external_access = true", "expected one SELECT"),
        ("RESET enable_external_access", "expected one SELECT"),
        ("PRAGMA database_list", "expected one SELECT"),
        ("CALL pragma_version()", "expected one SELECT"),
        ("SELECT * FROM read_csv('{folder}/secret.csv')", "disabled"),
        ("SELECT * FROM '{folder}/secret.csv'", "secret"),
        ("FROM read_text('{folder}/secret.csv')", "disabled"),
        ("FROM read_parquet('{folder}/*.parquet')", "disabled"),
        ("FROM glob('{folder}/*')", "disabled"),
        ("video_id IN (SELECT content FROM read_text('{folder}/secret.csv'))", "disabled"),
        ("ORDER BY (SELECT content FROM read_text('{folder}/secret.csv'))", "disabled"),
        ("PIVOT (FROM read_csv('{folder}/secret.csv')) ON a", "disabled"),
        ("FROM query('COPY index TO ''{folder}/out.csv''')", "SELECT"),
        ("FROM TABLE", "TABLE|end of input"),
        ("keep_ratoi < 0.4", "keep_ratio"),
        ("codec = ", "syntax error"),
        ("ORDER BY BY codec", "BY"),
        ("SELECT FORM index", "FORM|index"),
    ],
)
def test_what_is_no_query_of_this_one_table_is_refused_in_one_line(ask, tmp_path, sql, said):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError, match=said) as caught:
        ask(sql.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


WRITE = "COPY (SELECT 1 AS video_id) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)"
PIVOTED = WRITE.replace("SELECT 1 AS video_id", "PIVOT (SELECT 1 AS a, 2 AS b) ON a")


@pytest.mark.parametrize(
    "sql",
    [
        WRITE,
        f"EXPLAIN {WRITE}",
        f"EXPLAIN ANALYZE {WRITE}",
        f"explain analyse {WRITE};",
        f"EXPLAIN (ANALYZE) {WRITE}",
        f"EXPLAIN (FORMAT json, ANALYZE) {WRITE}",
        f"/* a */ EXPLAIN /* b */ ANALYZE {WRITE}",
        f"-- a\nEXPLAIN ANALYZE -- b\n{WRITE}",
        PIVOTED,
        f"EXPLAIN ANALYZE {PIVOTED}",
        f"WITH a AS ({WRITE}) SELECT 1",
        f"WITH a AS ({WRITE}) FROM a",
        f"EXPLAIN ANALYZE WITH a AS ({WRITE}) FROM a",
        f"WITH a AS ({WRITE}) PIVOT (SELECT 1 AS a, 2 AS b) ON a",
        f"PIVOT (WITH a AS ({WRITE}) SELECT 1 AS b FROM a) ON b",
        f"FROM (WITH a AS ({WRITE}) FROM a)",
        f"video_id IN (WITH a AS ({WRITE}) FROM a)",
        f"1 = 1) SELECT 1; {WRITE}; SELECT (1",
    ],
)
def test_no_statement_writes_into_a_file_of_the_index(tmp_path, sql):
    file = tmp_path / "a.parquet"
    pq.write_table(TABLE, file)
    before = file.read_bytes()
    with pytest.raises(QueryError):
        query_files([str(file)], TABLE.slice(0, 0), sql.format(file=file))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_sql_in_a_text_writes_into_no_file_of_the_index(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(TABLE, file)
    before = file.read_bytes()
    inner = f"WITH a AS (CO' || 'PY {WRITE[5:].replace(chr(39), 2 * chr(39))}) FROM a"
    for sql in ("FROM query('{inner}')", "PIVOT (FROM query('{inner}')) ON video_id"):
        with pytest.raises(QueryError):
            query_files([str(file)], TABLE, sql.format(inner=inner).format(file=file))
    assert file.read_bytes() == before
