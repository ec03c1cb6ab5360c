"""What columns of a manifest may hold, and that it reaches the index and its SQL as it is."""

import datetime as dt
import decimal
import json
import pickle

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cache import open_cache
from pipeline.corpus import find_videos
from pipeline.corpus_columns import further_columns, require_same_columns
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.discard import discard_damage
from pipeline.store.index import read_index
from pipeline.store.verify import verify_cache
from schemas.errors import CorpusError
from tests.store.sample_cache import build, failed_row, make_sample

MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 123456)

CARRIED = [
    (pa.timestamp("us"), MOMENT, None),
    (pa.timestamp("ms"), MOMENT.replace(microsecond=123000), pa.timestamp("us")),
    (pa.timestamp("s"), dt.datetime(9999, 12, 31), pa.timestamp("us")),
    (pa.timestamp("ns"), pd.Timestamp("2024-05-06 07:08:09.123456789"), None),
    (pa.timestamp("us", "UTC"), MOMENT.replace(tzinfo=dt.UTC), None),
    (pa.timestamp("us", "Europe/Berlin"), MOMENT.replace(tzinfo=dt.UTC), None),
    (pa.date32(), dt.date(2024, 5, 6), None),
    (pa.time64("us"), dt.time(7, 8, 9, 10), None),
    (pa.time32("ms"), dt.time(7, 8, 9), None),
    (pa.decimal128(12, 3), decimal.Decimal("1234.500"), None),
    (pa.decimal128(38, 0), decimal.Decimal(10**37), None),
    (pa.int8(), -8, None),
    (pa.int16(), -16, None),
    (pa.int32(), -32, None),
    (pa.int64(), -(2**62), None),
    (pa.uint8(), 200, None),
    (pa.uint16(), 60_000, None),
    (pa.uint32(), 2**32 - 1, None),
    (pa.uint64(), 2**64 - 1, None),
    (pa.float32(), 0.5, None),
    (pa.float64(), 0.1, None),
    (pa.bool_(), True, None),
    (pa.string(), "text", None),
    (pa.large_string(), "text", pa.string()),
    (pa.string_view(), "text", pa.string()),
    (pa.dictionary(pa.int8(), pa.string()), "red", pa.string()),
    (pa.dictionary(pa.int32(), pa.int16()), 7, pa.int16()),
    (pa.binary(), b"\x00\xff", None),
    (pa.binary(2), b"\x00\xff", pa.binary()),
    (pa.float16(), 0.5, pa.float32()),
    (pa.list_(pa.string()), ["a", None], None),
    (pa.list_(pa.int8(), 2), [1, 2], pa.list_(pa.int8())),
    (pa.large_list(pa.large_string()), ["a"], pa.list_(pa.string())),
    (pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))]), {"a": 1, "b": ["x"]}, None),
    (pa.list_(pa.struct([("t", pa.timestamp("us"))])), [{"t": MOMENT}], None),
    (pa.map_(pa.string(), pa.int64()), [("k", 1)], None),
    (pa.list_(pa.list_(pa.float64())), [[0.5], []], None),
]


def manifest_of(folder, kind, *values):
    """A Parquet manifest with one further column; its videos are v0, v1 ..."""
    return manifest_with(folder, {"x": pa.array(values, kind)})


def manifest_with(folder, columns):
    ids = [f"v{n}" for n in range(len(next(iter(columns.values()))))]
    table = pa.table({"video_id": ids, "uri": [f"{n}.mp4" for n in ids], **columns})
    pq.write_table(table, folder / "m.parquet")
    return str(folder / "m.parquet")


def test_every_type_of_parquet_reaches_the_index_through_every_merge(tmp_path):
    columns = {f"x{n}": pa.array([v, None], kind) for n, (kind, v, _) in enumerate(CARRIED)}
    rows = [
        failed_row(ref.video_id, extra=pickle.loads(pickle.dumps(ref.extra)))  # as to a worker
        for ref in find_videos([manifest_with(tmp_path, columns)])
    ]
    root = tmp_path / "cache"
    build(root, failed_row("u", extra={"other": 1}))
    for row in rows:
        build(root, row)
    for bucket_from_rows in (None, 100, 1):
        if bucket_from_rows:
            compact_cache(open_storage(root), bucket_from_rows=bucket_from_rows)
        cache = open_cache(root)
        found = cache.query("SELECT * FROM index WHERE video_id = 'v0'").to_pylist()[0]
        table, one, other = cache.index, cache.row("v0"), cache.row("v1")
        for name, (kind, value, stored) in zip(columns, CARRIED, strict=True):
            expected = pa.array([None, value, None], kind).cast(stored or kind)
            assert table.schema.field(name).type == (stored or kind)
            assert table[name].combine_chunks().equals(expected)
            assert same(found[name], expected[1].as_py())
            assert same(one.extra[name], expected[1].as_py())
            assert other.extra[name] is None
    files = str(root / "index" / "*.parquet")
    stock = duckdb.sql(f"SELECT {', '.join(columns)} FROM read_parquet('{files}')")
    assert stock.to_arrow_table().num_rows == 3


def same(found, expected):
    """Equal values; points in time by what they mean, in whatever zone they are told."""
    return found == expected or pd.Timestamp(found) == pd.Timestamp(expected)


@pytest.mark.parametrize(
    "kind",
    [
        pa.duration("us"),
        pa.decimal256(60, 2),
        pa.list_(pa.duration("s")),
        pa.struct([("a", pa.int8()), ("A", pa.int8())]),
        pa.uuid(),
    ],
    ids=str,
)
def test_a_column_that_sql_could_not_read_back_is_refused_by_name_and_type(tmp_path, kind):
    with pytest.raises(CorpusError, match="column 'x' is of type") as caught:
        find_videos([manifest_of(tmp_path, kind, None)])
    assert "\n" not in str(caught.value)


def test_the_numbers_of_pandas_rows_are_left_out_and_its_categories_are_text(tmp_path):
    frame = pd.DataFrame(
        {"video_id": ["a", "b"], "uri": ["a.mp4", "b.mp4"], "tag": pd.Categorical(["x", None])},
        index=[5, 9],
    )
    frame.to_parquet(tmp_path / "m.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "m.parquet").names
    found = find_videos([str(tmp_path / "m.parquet")])
    assert [dict(ref.extra) for ref in found] == [{"tag": "x"}, {"tag": None}]


def test_a_named_index_of_pandas_is_a_column_like_any_other(tmp_path):
    frame = pd.DataFrame({"video_id": ["a"], "uri": ["a.mp4"], "shot": [3]}).set_index("video_id")
    frame.to_parquet(tmp_path / "m.parquet")
    [found] = find_videos([str(tmp_path / "m.parquet")])
    assert (found.video_id, dict(found.extra)) == ("a", {"shot": 3})


def rows_of(source):
    """What a build commits of videos that it cannot read."""
    return [failed_row(ref.video_id, extra=ref.extra) for ref in find_videos([source])]


def write_jsonl(folder, *values):
    path = folder / "m.jsonl"
    rows = [{"video_id": f"v{n}", "uri": f"{n}.mp4", **value} for n, value in enumerate(values)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_objects_and_lists_in_json_become_structs_and_lists_of_one_type(tmp_path):
    source = write_jsonl(
        tmp_path,
        {"meta": {"a": 1, "tags": ["x"]}, "boxes": [[1, 2], []]},
        {"meta": {"b": {"c": 0.5}}, "boxes": []},
        {"meta": None, "empty": {}},
        {"meta": {}, "empty": {"deep": {}}},
        {},
    )
    build(tmp_path / "cache", *rows_of(source))
    cache = open_cache(tmp_path / "cache")
    assert cache.query("SELECT video_id FROM index WHERE meta.a = 1")["video_id"][0].as_py() == "v0"
    assert cache.query("meta.b.c > 0.1").num_rows == 1
    assert cache.query("list_contains(meta.tags, 'x')").num_rows == 1
    assert cache.row("v0").extra["boxes"] == [[1, 2], []]
    assert cache.row("v3").extra["meta"] is None
    assert cache.row("v2").extra["empty"] is None


@pytest.mark.parametrize(
    "values",
    [
        [{"x": [1, "a"]}],
        [{"x": [1]}, {"x": 1}],
        [{"x": {"a": 1}}, {"x": {"a": "one"}}],
        [{"x": {"a": 1}}, {"x": [1]}],
        [{"x": [2**64]}],
        [{"x": ["\ud800"]}],
        [{"x": {"a": 1, "A": 2}}],
    ],
    ids=str,
)
def test_nested_values_of_no_common_form_are_refused_by_column(tmp_path, values):
    with pytest.raises(CorpusError, match="column 'x'") as caught:
        find_videos([write_jsonl(tmp_path, *values)])
    assert "\n" not in str(caught.value)
    assert "m.jsonl" in str(caught.value) or "two types" in str(caught.value)


def csv_columns(folder, *lines):
    path = folder / "m.csv"
    path.write_bytes("\n".join(lines).encode())
    return [dict(ref.extra) for ref in find_videos([str(path)])]


@pytest.mark.parametrize(
    "word",
    ["", "nan", "NaN", "-nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None"],
)
@pytest.mark.parametrize(
    ("number", "value"), [("3", 3), ("0.5", 0.5), ("-1e3", -1000.0), ("TRUE", True)]
)
def test_a_word_for_no_value_is_null_and_the_column_keeps_its_type(tmp_path, word, number, value):
    lines = ["video_id,uri,score", f"a,a.mp4,{number}", f"b,b.mp4,{word}"]
    assert csv_columns(tmp_path, *lines) == [{"score": value}, {"score": None}]


def test_such_a_word_among_texts_is_text(tmp_path):
    lines = ["video_id,uri,country", "a,a.mp4,NA", "b,b.mp4,DE", "c,c.mp4,None"]
    assert [row["country"] for row in csv_columns(tmp_path, *lines)] == ["NA", "DE", "None"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("+1", 1),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", "9223372036854775808"),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("1.", 1.0),
        ("+1.5", 1.5),
        ("inf", float("inf")),
        ("-Infinity", float("-inf")),
        ("+INF", float("inf")),
        ("007", "007"),
        (".", "."),
        ("1_000", "1_000"),
        ("\u0663", "\u0663"),
        ("True", True),
        ("yes", "yes"),
    ],
)
def test_numbers_in_a_csv_are_read_as_programs_write_them(tmp_path, text, value):
    (found,) = csv_columns(tmp_path, "video_id,uri,x", f"a,a.mp4,{text}")
    assert found == {"x": value}
    assert type(found["x"]) is type(value)


def test_a_blank_after_a_closing_quote_is_refused_with_the_cure(tmp_path):
    with pytest.raises(
        CorpusError, match=r"line 2: not valid CSV.* no blank follows them"
    ) as caught:
        csv_columns(tmp_path, "video_id,uri,x", 'a, "a.mp4" ,"x"')
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["nan", "NA", "NULL", "<NA>"])
def test_a_column_of_nothing_but_such_words_holds_nothing(tmp_path, word):
    lines = ["video_id,uri,score", f"a,a.mp4,{word}", "b,b.mp4,", "c,c.mp4,NaN"]
    assert [row["score"] for row in csv_columns(tmp_path, *lines)] == [None, None, None]


def test_blanks_before_a_quote_and_lines_of_blanks_are_dropped(tmp_path):
    lines = ["video_id, uri, label", "  ", 'a,  "a, b.mp4",  "x, y"', ""]
    (tmp_path / "a, b.mp4").write_bytes(b"x")
    assert csv_columns(tmp_path, *lines) == [{"label": "x, y"}]
    assert find_videos([str(tmp_path / "m.csv")])[0].size_bytes == 1


def test_blanks_round_the_fields_of_a_csv_are_dropped(tmp_path):
    (tmp_path / "a b.mp4").write_bytes(b"x")
    (tmp_path / "m.csv").write_bytes(
        b"\xef\xbb\xbf video_id , uri,\tscore , label\r\n one , a b.mp4, 0.5 , x y \r\n"
        b'" two "," a b.mp4 "," 1","  "\r\n'
    )
    one, two = find_videos([str(tmp_path / "m.csv")])
    assert (one.video_id, one.size_bytes, dict(one.extra)) == (
        "one",
        1,
        {"score": 0.5, "label": "x y"},
    )
    assert (two.video_id, two.size_bytes, dict(two.extra)) == (
        "two",
        1,
        {"score": 1.0, "label": None},
    )


def schema(**columns):
    return pa.schema(list(columns.items()))


@pytest.mark.parametrize(
    ("there", "given"),
    [
        (pa.int64(), pa.float64()),
        (pa.float64(), pa.int32()),
        (pa.null(), pa.string()),
        (pa.time32("ms"), pa.time64("ns")),
        (pa.decimal128(5, 2), pa.decimal128(9, 4)),
        (pa.decimal128(38, 9), pa.decimal128(29, 2)),
        (pa.struct([("a", pa.int64())]), pa.struct([("b", pa.string())])),
        (pa.list_(pa.null()), pa.list_(pa.string())),
    ],
    ids=str,
)
def test_a_column_may_join_that_of_an_earlier_build_where_its_values_do(there, given):
    require_same_columns(schema(x=given), schema(x=there), where="cache")


@pytest.mark.parametrize(
    ("there", "given"),
    [
        (pa.int64(), pa.string()),
        (pa.string(), pa.float64()),
        (pa.bool_(), pa.int64()),
        (pa.string(), pa.binary()),
        (pa.uint64(), pa.int64()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us"), pa.date32()),
        (pa.timestamp("us"), pa.timestamp("ns")),
        (pa.timestamp("ns", "UTC"), pa.timestamp("us", "UTC")),
        (pa.list_(pa.timestamp("us")), pa.list_(pa.timestamp("ns"))),
        (pa.decimal128(38, 9), pa.decimal128(38, 0)),
        (pa.decimal128(10, 2), pa.decimal128(38, 0)),
        (pa.list_(pa.decimal128(38, 9)), pa.list_(pa.decimal128(38, 0))),
        (pa.struct([("a", pa.decimal128(38, 9))]), pa.struct([("a", pa.decimal128(38, 0))])),
        (pa.list_(pa.int64()), pa.int64()),
        (pa.list_(pa.int64()), pa.list_(pa.string())),
        (pa.struct([("a", pa.int64())]), pa.struct([("a", pa.string())])),
        (pa.struct([("a", pa.int64())]), pa.struct([("A", pa.int64())])),
        (pa.decimal128(5, 2), pa.float64()),
    ],
    ids=str,
)
def test_a_column_of_another_type_than_in_an_earlier_build_is_refused(there, given):
    with pytest.raises(CorpusError, match="column 'x' of the corpus is of type") as caught:
        require_same_columns(schema(x=given), schema(x=there), where="cache")
    assert "\n" not in str(caught.value)


def test_columns_that_differ_by_case_from_those_of_an_earlier_build_are_refused():
    with pytest.raises(CorpusError, match="'Score' of the corpus and column 'score' of the cache"):
        require_same_columns(schema(Score=pa.int64()), schema(score=pa.int64()), where="cache")


def test_nested_columns_of_several_builds_join(tmp_path):
    for n, value in enumerate([{"a": 1}, {"b": "x"}, None, {"a": 0.5, "c": [1]}]):
        (ref,) = find_videos([write_jsonl(tmp_path, {"meta": value})])
        build(tmp_path / "cache", failed_row(f"v{n}", extra=ref.extra))
    table = read_index(open_storage(tmp_path / "cache"))
    compact_cache(open_storage(tmp_path / "cache"), bucket_from_rows=1)
    assert open_cache(tmp_path / "cache").index.equals(table)
    found = table["meta"].to_pylist()
    assert found[3] == {"a": 0.5, "b": None, "c": [1]}
    assert open_cache(tmp_path / "cache").query("meta.a > 0.7")["video_id"].to_pylist() == ["v0"]


def test_a_damaged_video_keeps_its_columns(tmp_path):
    (ref,) = find_videos([manifest_of(tmp_path, pa.decimal128(9, 2), decimal.Decimal("1.50"))])
    root = tmp_path / "cache"
    build(root, make_sample().pending("v", extra={**ref.extra, "label": "x"}))
    (shard,) = (root / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-5])
    discard_damage(open_storage(root), list(verify_cache(open_storage(root))))
    row = open_cache(root).row("v")
    assert (row.status, row.extra) == ("damaged", {"label": "x", "x": decimal.Decimal("1.50")})


def test_columns_of_all_sources_have_one_type(tmp_path):
    refs = find_videos([write_jsonl(tmp_path, {"x": 1}, {"x": 0.5}, {"y": [1]}, {})])
    assert further_columns(refs) == schema(x=pa.float64(), y=pa.list_(pa.int64()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            pa.scalar(dt.datetime(9999, 12, 31), pa.timestamp("us")),
            pa.scalar(1_577_836_800_123_456_789, pa.timestamp("ns")),
        ),
        (
            pa.scalar(decimal.Decimal("1.5"), pa.decimal128(38, 9)),
            pa.scalar(decimal.Decimal("3"), pa.decimal128(38, 0)),
        ),
    ],
    ids=["times", "decimals"],
)
def test_values_that_one_column_cannot_hold_exactly_are_refused(tmp_path, one, other):
    for name, value in (("a", one), ("b", other)):
        table = pa.table(
            {"video_id": [name], "uri": [f"{name}.mp4"], "x": pa.array([value], value.type)}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(CorpusError, match="column 'x' holds values of two types") as caught:
        find_videos([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [1, -1])
def test_whole_numbers_that_a_double_would_round_are_refused(tmp_path, order):
    rows = [{"x": 2**53 + 1}, {"x": 0.5}][::order]
    with pytest.raises(CorpusError, match=r"column 'x' holds 9007199254740993 for 'v[01]'"):
        find_videos([write_jsonl(tmp_path, *rows)])
    refs = find_videos([write_jsonl(tmp_path, {"x": 2**53}, {"x": 0.5})])
    assert further_columns(refs) == schema(x=pa.float64())


MAP = pa.map_(pa.string(), pa.int64())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (MAP, [("a", 1), ("a", 2)]),
        (pa.map_(pa.struct([("x", pa.int8())]), pa.int8()), [({"x": 1}, 1), ({"x": 1}, 2)]),
        (pa.list_(MAP), [[("a", 1)], [("a", 1), ("a", 1)]]),
        (pa.struct([("m", MAP)]), {"m": [("a", 1), ("a", 2)]}),
        (pa.map_(pa.string(), MAP), [("a", [("b", 1), ("b", 2)])]),
    ],
    ids=str,
)
def test_a_map_with_one_key_twice_is_refused_by_column_and_row(tmp_path, kind, value):
    with pytest.raises(CorpusError, match="row 3: column 'x' holds a map") as caught:
        find_videos([manifest_of(tmp_path, kind, None, None, value)])
    assert "\n" not in str(caught.value)
