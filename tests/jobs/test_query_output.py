"""What ``tokenreel query`` prints: every column, and JSON that every program reads."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.corpus import find_videos
from schemas.errors import ConfigError, QueryError
from tests.store.sample_cache import build, make_sample


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    build(
        root, *(make_sample(seed=n).pending(name, key=f"{n:064x}") for n, name in enumerate("ab"))
    )
    return root


def query(root, sql, style):
    result = CliRunner().invoke(cli, ["query", str(root), sql, "--format", style])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def rows(root, sql):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = query(root, sql, "json").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


JOIN = (
    "SELECT a.video_id, b.video_id FROM index a JOIN index b ON a.video_id < b.video_id "
    "ORDER BY ALL"
)


def test_two_columns_of_one_name_are_printed_in_every_format(root):
    assert rows(root, JOIN) == [{"video_id": "a", "video_id_1": "b"}]
    found = list(csv.reader(io.StringIO(query(root, JOIN, "csv"))))
    assert found == [["video_id", "video_id_1"], ["a", "b"]]
    header, _, line = query(root, JOIN, "table").splitlines()
    assert (header.split(), line.split()) == (["video_id", "video_id_1"], ["a", "b"])


def test_an_answer_that_cannot_be_shown_is_one_line(root):
    far = "SELECT [TIMESTAMP '20240-05-06 00:00:00'] AS x FROM index"
    result = CliRunner().invoke(cli, ["query", str(root), far])
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_types_that_arrow_lacks_are_text_beside_columns_of_one_name(root):
    sql = "SELECT 1 AS x, '01'::BIT AS x, '0'::BIT AS \"a\"\"b\" FROM index LIMIT 1"
    assert rows(root, sql) == [{"x": 1, "x_1": "01", 'a"b': "0"}]


def test_a_histogram_of_lists_is_printed(root):
    assert rows(root, "SELECT histogram([1]) AS n FROM index") == [{"n": [[[1], 2]]}]


@pytest.mark.parametrize(
    "sql",
    [
        "-- all\ntokens_before > 0",
        "--all\ntokens_before > 0",
        "-tokens_before < 0",
        "-fps < 0 OR true",
    ],
)
def test_sql_may_begin_with_a_dash(root, sql):
    assert [row["video_id"] for row in rows(root, sql)] == ["a", "b"]


def test_a_video_id_may_begin_with_a_dash(root):
    result = CliRunner().invoke(cli, ["show", str(root), "-rf.mp4"])
    assert "-rf.mp4" in result.stderr
    assert "option" not in result.stderr


def test_an_unknown_option_of_query_is_an_error(root):
    result = CliRunner().invoke(cli, ["query", str(root), "fps > 0", "--formt", "csv"])
    assert result.exit_code == 2


def test_clauses_alone_show_what_a_condition_shows(root):
    assert rows(root, "ORDER BY video_id DESC LIMIT 1") == rows(root, "video_id = 'b'")


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("sum(tokens_before)", 120),
        ("12345678901234567890123::HUGEINT", 12345678901234567890123),
        ("1.50::DECIMAL(5, 2)", 1.5),
        ("18446744073709551615::UBIGINT", 2**64 - 1),
        ("'nan'::DOUBLE", None),
        ("[1.5, 'inf'::DOUBLE, NULL]", [1.5, None, None]),
        ("{'a': [1, 2], 'b': {'c': 'nan'::FLOAT}}", {"a": [1, 2], "b": {"c": None}}),
        ("MAP {1: 'x'}", {"1": "x"}),
        ("TIMESTAMP '2024-05-06 07:08:09'", "2024-05-06 07:08:09"),
        ("TIMESTAMP '2024-05-06 07:08:09.5'", "2024-05-06 07:08:09.500000"),
        ("TIMESTAMP_NS '2024-05-06 07:08:09.123456789'", "2024-05-06 07:08:09.123456789"),
        ("TIMESTAMPTZ '2024-05-06 07:08:09+02'", "2024-05-06 05:08:09Z"),
        ("TIMESTAMP '20240-05-06 00:00:00'", "20240-05-06 00:00:00"),
        ("[DATE '2024-05-06']", ["2024-05-06"]),
        ("TIME '07:08:09'", "07:08:09"),
        ("INTERVAL '1 day 90 seconds'", "P0M1DT90S"),
        ("INTERVAL '100000000.000001 seconds'", "P0M0DT100000000.000001S"),
        ("INTERVAL '-1 month -1.5 seconds'", "P-1M0DT-1.5S"),
        ("[INTERVAL '1234567.25 seconds']", ["P0M0DT1234567.25S"]),
        ("TIMETZ '01:02:03.5+02'", "01:02:03.5+02"),
        ("TIME_NS '01:02:03.123456789'", "01:02:03.123456789"),
        ("TIME '07:08:09.25'", "07:08:09.250000"),
        ("'0101'::BIT", "0101"),
        ("12345678901234567890123456789012345678901::BIGNUM", f"{'1234567890' * 4}1"),
        ("'ab'::BLOB", "6162"),
        ("MAP {[1, 2]: 'x'}", [[[1, 2], "x"]]),
        ("[MAP {{'a': 1}: 2}]", [[[{"a": 1}, 2]]]),
        ("MAP {'ab'::BLOB: 1}", {"6162": 1}),
        ("MAP {DATE '2024-05-06': 1}", {"2024-05-06": 1}),
    ],
)
def test_every_kind_of_value_is_json(root, sql, value):
    whole = f"SELECT DISTINCT {sql} AS x FROM index"
    assert rows(root, whole) == [{"x": value}]
    for style in ("table", "csv"):
        assert query(root, whole, style)


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", f"{{folder}}/{LONG}", "fps > 0"],
        ["status", f"{{folder}}/{LONG}"],
        ["verify", f"{{folder}}/{LONG}"],
        ["show", f"{{folder}}/{LONG}/cache", "a"],
        ["compact", "x/" * 3000],
        ["plan", f"{{folder}}/{LONG}.mp4", "--out", "{folder}/out"],
        ["plan", f"{{folder}}/{LONG}/a.mp4", "--out", "{folder}/out"],
        ["plan", f"{{folder}}/{LONG}/*.mp4", "--out", "{folder}/out"],
        ["plan", f"{{folder}}/{LONG}.csv", "--out", "{folder}/out"],
        ["plan", f"@{{folder}}/{LONG}.txt", "--out", "{folder}/out"],
        ["plan", "{folder}/a.mp4", "--out", f"{{folder}}/{LONG}"],
    ],
)
def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path, arguments):
    (tmp_path / "a.mp4").touch()
    result = CliRunner().invoke(cli, [each.format(folder=tmp_path) for each in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert len([line for line in result.stderr.splitlines() if "rror" in line]) == 1


def test_a_listed_path_that_is_too_long_is_a_video_without_a_file(tmp_path):
    (tmp_path / "list.txt").write_text("y" * 5000 + ".mp4\n")
    (ref,) = find_videos([f"@{tmp_path / 'list.txt'}"])
    assert ref.size_bytes == -1


@pytest.mark.parametrize("place", [None, 3, b"cache", "a\0b"])
def test_what_is_no_place_is_refused_in_one_line(place):
    with pytest.raises(ConfigError) as caught:
        open_cache(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sql", [None, b"fps > 0", 3, ["fps > 0"]])
def test_a_query_that_is_no_text_is_refused(root, sql):
    with pytest.raises(QueryError, match="expected SQL as text"):
        open_cache(root).query(sql)


@pytest.mark.parametrize("ahead", ["x", 1.5, -1, True])
def test_reading_ahead_by_no_number_is_refused(root, ahead):
    with pytest.raises(ConfigError, match="ahead is"):
        next(open_cache(root).stream(ahead=ahead))
