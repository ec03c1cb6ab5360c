"""An index in buckets: its files, look-ups in them, and that nothing differs from one table."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from jobs.plan import DONE_COLUMNS
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.bucket_index import BucketIndex, open_index, read_columns
from pipeline.store.buckets import BLOCK_ROWS, BucketFile, pack_bucket
from pipeline.store.compact import compact_cache
from pipeline.store.fragment import (
    bucket_of,
    fragment_file,
    fragment_names,
    named_bucket,
    pack_fragment,
    read_fragment,
    rows_to_table,
)
from pipeline.store.index import Index, read_index
from pipeline.store.verify import verify_cache
from schemas.errors import IndexCorruptError, QueryError, VideoNotCachedError
from tests.store.sample_cache import MANIFEST, build, failed_row, fragments_of, make_sample

pytestmark = pytest.mark.slow

NAME = f"07-{'0' * 64}"
NOT_SHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    (row,) = build(tmp_path_factory.mktemp("cache"), make_sample().pending("v"))
    return row


def ids_of_bucket(bucket: int, count: int, pattern: str = "video{}") -> list[str]:
    found, n = [], 0
    while len(found) < count:
        video_id = pattern.format(n)
        if bucket_of(video_id) == bucket:
            found.append(video_id)
        n += 1
    return found


def table_of(ids: list[str]) -> pa.Table:
    return rows_to_table([failed_row(video_id, attempts=n) for n, video_id in enumerate(ids)])


def write_bucket(root: Path, ids: list[str], *, block_rows: int = 4, name: str = NAME) -> Path:
    path = root / fragment_file(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack_bucket(table_of(sorted(ids)), block_rows=block_rows))
    return path


def add_fragment(root: Path, number: int, rows) -> None:
    path = root / fragment_file(f"{number:064x}")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack_fragment(rows))


def compact(root: Path, **settings):
    return compact_cache(open_storage(root), bucket_from_rows=1, **settings)


@pytest.fixture
def bucketed(tmp_path, committed):
    """A compacted cache of 400 videos in buckets, and two loose rows: one new, one later."""
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json())
    rows = [replace(committed, video_id=f"clips/{n:03}.mp4", attempts=n) for n in range(400)]
    add_fragment(tmp_path, 0, rows)
    compact(tmp_path)
    loose = [failed_row("new"), replace(rows[7], created_ns=9, attempts=99)]
    add_fragment(tmp_path, 1, loose)
    return tmp_path


def test_the_bucket_of_an_id_is_the_top_byte_of_its_digest():
    for video_id in ("", "a", "ä/ö.mp4", "x" * 10_000):
        assert bucket_of(video_id) == xxh3_64_intdigest(video_id.encode()) >> 56
    assert named_bucket(NAME) == 7
    assert named_bucket("0" * 64) is None
    assert named_bucket("0" * 63) is None


IDS = {
    "plain": ids_of_bucket(7, 41),
    "with a long common prefix": ids_of_bucket(7, 41, "p" * 300 + "{}"),
    "not ASCII": ids_of_bucket(7, 41, "zäü/\U0001f600{}"),
    "10 kB long": ids_of_bucket(7, 21, "y" * 10_000 + "{}"),
    "mixed": [
        *ids_of_bucket(7, 9),
        *ids_of_bucket(7, 9, "\U0001f600{}"),
        *ids_of_bucket(7, 9, "é{}"),
    ],
    "a single one": ids_of_bucket(7, 1),
}


@pytest.mark.parametrize("block_rows", [1, 4, 10, 256])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_every_id_is_found_and_no_neighbour_of_one(tmp_path, ids, block_rows):
    table = table_of(sorted(ids))
    write_bucket(tmp_path, ids, block_rows=block_rows)
    bucket = BucketFile(open_storage(tmp_path), NAME)
    for place, video_id in enumerate(sorted(ids)):
        assert bucket.find(video_id).num_rows == 1
        assert bucket.find(video_id)["video_id"][0].as_py() == video_id
        for absent in (video_id + "\0", video_id + "\U0010ffff", video_id[:-1]):
            assert bucket.find(absent).num_rows == int(absent in ids), place
    assert bucket.find("").num_rows == bucket.find("\U0010ffff").num_rows == 0
    assert (
        read_fragment(open_storage(tmp_path), NAME)
        .sort_by("video_id")
        .select(["video_id", "status"])
        .equals(table.select(["video_id", "status"]))
    )


def test_a_row_that_is_found_is_the_row_that_was_written(tmp_path, committed):
    ids = sorted(ids_of_bucket(7, 600))
    rows = [replace(committed, video_id=name, extra={"zone": n}) for n, name in enumerate(ids)]
    (tmp_path / "index").mkdir()
    data = pack_bucket(rows_to_table(rows))
    (tmp_path / fragment_file(NAME)).write_bytes(data)
    assert len(directory_of(bytes(data))[2]["blocks"]) == -(-600 // BLOCK_ROWS)
    index = open_index(open_storage(tmp_path))
    assert isinstance(index, BucketIndex)
    assert [index.row(name) for name in ids] == rows


def test_a_bucket_that_another_program_wrote_is_read_whole(tmp_path):
    ids = sorted(ids_of_bucket(7, 20))
    (tmp_path / "index").mkdir()
    shuffled = table_of(ids).take(pa.array(np.random.default_rng(0).permutation(20)))
    pq.write_table(shuffled, tmp_path / fragment_file(NAME), write_statistics=False)
    index = open_index(open_storage(tmp_path))
    assert [index.row(name).attempts for name in ids] == list(range(20))
    assert "absent" not in index
    assert list(index.select(["attempts"])["attempts"].to_pylist()) != []
    assert index.table.equals(read_index(open_storage(tmp_path)))


def test_a_row_in_a_bucket_that_is_not_its_own_is_an_error(tmp_path):
    stranger = ids_of_bucket(8, 1)
    write_bucket(tmp_path, [*ids_of_bucket(7, 5), *stranger])
    with pytest.raises(IndexCorruptError, match=f"{stranger[0]}' is of bucket 08.* says 07"):
        read_index(open_storage(tmp_path))
    with pytest.raises(IndexCorruptError, match="is of bucket 08"):
        open_index(open_storage(tmp_path)).counts()


def directory_of(data: bytes) -> tuple[int, int, dict]:
    """Where the directory's JSON begins and ends, and what it says."""
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little") - 24
    begin = end - int.from_bytes(data[end + 8 : end + 16], "little")
    return begin, end, json.loads(data[begin:end])


def with_directory(data: bytes, directory: object) -> bytes:
    begin, end, _ = directory_of(data)
    body = json.dumps(directory).encode()
    digest = xxh3_64_intdigest(body).to_bytes(8, "little")
    return data[:begin] + body + digest + len(body).to_bytes(8, "little") + data[end + 16 :]


def with_blocks(directory: dict, change) -> dict:
    return {**directory, "blocks": [change(block) for block in directory["blocks"]]}


HOSTILE = {
    "no blocks": lambda d: {},
    "a list": lambda d: [],
    "another schema": lambda d: {**d, "schema": "AAAA"},
    "swapped blocks": lambda d: {**d, "blocks": d["blocks"][::-1]},
    "a lost block": lambda d: {**d, "blocks": [d["blocks"][0], *d["blocks"][2:]]},
    "other first ids": lambda d: with_blocks(d, lambda b: ["!", *b[1:]]),
    "numbers for ids": lambda d: with_blocks(d, lambda b: [1, *b[1:]]),
    "text for numbers": lambda d: with_blocks(d, lambda b: [*b[:5], "1"]),
    "huge places": lambda d: with_blocks(d, lambda b: [*b[:2], 2**70, *b[3:]]),
    "places before the file": lambda d: with_blocks(d, lambda b: [*b[:2], -5, *b[3:]]),
    "blocks that unpack to much": lambda d: with_blocks(d, lambda b: [*b[:4], 2**62, b[5]]),
    "blocks that unpack to little": lambda d: with_blocks(d, lambda b: [*b[:4], 8, b[5]]),
    "more rows": lambda d: with_blocks(d, lambda b: [b[0], b[1] + 1, *b[2:]]),
    "other digests": lambda d: with_blocks(d, lambda b: [*b[:5], b[5] ^ 1]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_directory_that_lies_is_an_error_or_changes_nothing(tmp_path, change):
    ids = sorted(ids_of_bucket(7, 20))
    path = write_bucket(tmp_path, ids)
    data = path.read_bytes()
    path.write_bytes(with_directory(data, change(directory_of(data)[2])))
    errors = []
    for number, video_id in enumerate(ids):
        try:
            assert open_index(open_storage(tmp_path)).row(video_id).attempts == number
        except IndexCorruptError as error:
            errors.append(str(error))
    assert errors
    assert all(NAME in error for error in errors)
    assert read_index(open_storage(tmp_path))["video_id"].to_pylist() == ids


def test_verify_finds_a_directory_that_holds_other_rows_than_the_file(tmp_path):
    ids = sorted(ids_of_bucket(7, 20))
    build(tmp_path)
    path = write_bucket(tmp_path, ids)
    assert list(verify_cache(open_storage(tmp_path))) == []
    mine = path.read_bytes()
    path.write_bytes(pack_bucket(table_of(ids[:10]), block_rows=4))
    theirs = path.read_bytes()
    begin, _, directory = directory_of(theirs)
    first = directory["blocks"][0][2]
    place = directory_of(mine)[2]["blocks"][0][2]
    moved = with_blocks(directory, lambda b: [*b[:2], b[2] - first + place, *b[3:]])
    footer = mine[footer_begin(mine) :]
    body = json.dumps(moved).encode()
    digest = xxh3_64_intdigest(body).to_bytes(8, "little")
    lie = mine[:place] + theirs[first:begin] + body + digest + len(body).to_bytes(8, "little")
    path.write_bytes(lie + b"TRBUCKET" + footer)
    assert read_index(open_storage(tmp_path))["video_id"].to_pylist() == ids
    (finding,) = verify_cache(open_storage(tmp_path))
    assert finding.kind == "damaged_fragment"
    assert "its directory holds other rows" in finding.error


def footer_begin(data: bytes) -> int:
    """Where the Parquet footer begins."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    ids = sorted(ids_of_bucket(7, 24))
    path = write_bucket(tmp_path, ids)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(data), 400):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        number = int(random.integers(24))
        try:
            assert open_index(open_storage(tmp_path)).row(ids[number]).attempts == number
            assert f"{ids[number]}x" not in open_index(open_storage(tmp_path))
        except IndexCorruptError:
            refused += 1
    assert refused > 30


def test_a_bucket_cut_short_anywhere_is_an_error(tmp_path):
    ids = ids_of_bucket(7, 5)
    path = write_bucket(tmp_path, ids)
    data = path.read_bytes()
    for length in (0, 3, 8, 11, 12, 100, len(data) - 1, len(data) - 8):
        path.write_bytes(data[:length])
        with pytest.raises(IndexCorruptError, match=NAME):
            open_index(open_storage(tmp_path)).row(ids[0])


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "video_id": st.sampled_from(["a", "b", "ä", "c/d.mp4", "e", "f" * 50]),
            "status": st.sampled_from(["ok", "ok", "failed", "quarantined", "damaged"]),
            "content_sha256": st.sampled_from([None, "c" * 64, "d" * 64]),
            "created_ns": st.integers(0, 3),
            "writer": st.sampled_from(["one", "two"]),
            "extra": st.dictionaries(
                st.sampled_from(["zone", "label"]),
                st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.just(1.5),
            ),
        }
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda fields: fields["video_id"],
)
STEPS = st.lists(st.tuples(ROWS, st.booleans()), min_size=1, max_size=5)


@settings(max_examples=4, phases=NOT_SHRUNK)
@given(STEPS)
def test_whatever_is_asked_the_answer_is_that_of_one_table(tmp_path_factory, committed, steps):
    check_answers(tmp_path_factory.mktemp("cache"), committed, steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of work, more on a busy machine
@settings(max_examples=150, phases=NOT_SHRUNK)
@given(STEPS)
def test_the_answers_are_those_of_one_table_for_many_more_sets_of_rows(
    tmp_path_factory, committed, steps
):
    check_answers(tmp_path_factory.mktemp("cache"), committed, steps)


def check_answers(root: Path, committed, steps) -> None:
    """Commits, of which some are followed by a compaction, whose old files some come back."""
    (root / "manifest.json").write_text(MANIFEST.to_json())
    for number, (rows, is_compacted) in enumerate(steps):
        add_fragment(root, number, [any_row(committed, number, **fields) for fields in rows])
        before = {path: path.read_bytes() for path in fragments_of(root)}
        if is_compacted:
            expected = Index(read_index(open_storage(root)))
            compact(root, rows_at_once=2)
            assert_answers(root, expected)
            gone = [path for path in before if not path.exists()]
            for path in gone[1::2]:  # as when it was killed before it removed them
                path.write_bytes(before[path])
        assert_answers(root, Index(read_index(open_storage(root))))


def any_row(committed, number: int, *, status, **fields):
    if status == "ok":
        return replace(committed, shard=f"{number:064x}", **fields)
    return failed_row(status=status, **fields)


def assert_answers(root: Path, expected: Index) -> None:
    index = open_index(open_storage(root))
    assert index.table.equals(expected.table)
    assert index.counts() == expected.counts()
    assert sorted(index.ids()) == list(expected.ids())
    assert index.failed().equals(expected.failed())
    for video_id in ["a", "b", "ä", "c/d.mp4", "e", "f" * 50, "absent"]:
        assert index.status(video_id) == expected.status(video_id)
        if video_id in expected:
            assert index.row(video_id) == expected.row(video_id)
    narrow = read_columns(open_storage(root), DONE_COLUMNS).sort_by("video_id")
    assert narrow.combine_chunks().equals(expected.table.select(DONE_COLUMNS).combine_chunks())
    found = index.query("SELECT * FROM index ORDER BY video_id")
    assert found.select(DONE_COLUMNS).to_pylist() == narrow.to_pylist()
    assert found.column_names == expected.table.column_names


def test_a_cache_answers_from_buckets_and_loose_rows_together(bucketed):
    cache = open_cache(bucketed)
    assert len(cache) == 400
    assert "buckets=" in repr(cache)
    assert cache.row("clips/007.mp4").attempts == 99
    assert cache.row("clips/008.mp4").attempts == 8
    assert cache.failed()["video_id"].to_pylist() == ["new"]
    assert "new" not in cache
    assert "clips/399.mp4" in cache
    assert 7 not in cache
    assert "\ud800" not in cache
    ids = list(cache.ids())
    assert sorted(ids) == [f"clips/{n:03}.mp4" for n in range(400)]
    assert ids == sorted(ids, key=lambda name: (bucket_of(name), name))
    assert list(cache.ids()) == ids
    assert cache.index["video_id"].to_pylist() == sorted([*ids, "new"])
    with pytest.raises(
        VideoNotCachedError, match=r"no video 'clips/400.mp4'.*cache\.ids\(\) lists"
    ):
        cache.load("clips/400.mp4")


def test_a_cache_with_buckets_crosses_processes_and_threads(bucketed):
    cache = open_cache(bucketed)
    names = [f"clips/{n:03}.mp4" for n in range(400)]
    expected = [cache.row(name) for name in names]
    again = pickle.loads(pickle.dumps(cache))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(again.row, names)) == expected


def test_sql_sees_each_video_once_and_no_other_file(bucketed, tmp_path):
    cache = open_cache(bucketed)
    assert cache.query("SELECT count(*) AS n, max(attempts) AS a FROM index").to_pylist() == [
        {"n": 401, "a": 399}
    ]
    assert cache.query("attempts = 99 ORDER BY video_id")["video_id"].to_pylist() == [
        "clips/007.mp4",
        "clips/099.mp4",
    ]
    assert cache.query("status = 'ok'").column_names == cache.index.column_names
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for source in (f"'{secret}'", f"read_parquet('{tmp_path / 'other.parquet'}')"):
        with pytest.raises(QueryError, match=r"Permission Error|disabled"):
            cache.query(f"SELECT * FROM {source}")
    for statement in (f"COPY index TO '{tmp_path / 'out.csv'}'", "SET allowed_paths = []"):
        with pytest.raises(QueryError):
            cache.query(statement)


def test_pandas_polars_and_duckdb_read_all_fragments(bucketed):
    pattern = str(bucketed / "index" / "*.parquet")
    expected = 402
    assert sum(len(pd.read_parquet(path)) for path in fragments_of(bucketed)) == expected
    assert pl.read_parquet(pattern).height == expected
    wanted = pl.scan_parquet(pattern).filter(pl.col("video_id") == "clips/008.mp4").collect()
    assert wanted["attempts"].to_list() == [8]
    found = duckdb.connect().execute(f"SELECT count(*), max(attempts) FROM '{pattern}'")
    assert found.fetchall() == [(expected, 399)]
    assert pq.read_table(bucketed / "index").num_rows == expected


@pytest.mark.slow
def test_an_open_index_finds_rows_that_a_compaction_moved(bucketed):
    index = open_index(open_storage(bucketed))
    expected = read_index(open_storage(bucketed))
    old = set(fragment_names(open_storage(bucketed)))
    add_fragment(bucketed, 2, [failed_row(f"late{n}") for n in range(2000)])
    compact(bucketed)
    assert not old & set(fragment_names(open_storage(bucketed)))
    for video_id in expected["video_id"].to_pylist():
        assert video_id in index
    assert index.row("clips/007.mp4").attempts == 99
    assert "late5" in index
    assert index.query("video_id LIKE 'clips/%'").num_rows == 400


def test_a_bucket_that_no_loose_row_touches_is_left_as_it_is(bucketed):
    buckets = {bucket_of("new"), bucket_of("clips/007.mp4")}
    before = set(fragments_of(bucketed))
    report = compact(bucketed)
    gone = before - set(fragments_of(bucketed))
    assert {named_bucket(path.stem) for path in gone} == {None, *buckets}
    assert report.fragments_replaced == len(gone)
    assert compact(bucketed).fragments_replaced == 0


@pytest.mark.slow
def test_a_new_further_column_reaches_every_bucket(bucketed):
    add_fragment(bucketed, 2, [failed_row("zoned", extra={"zone": 5})])
    expected = read_index(open_storage(bucketed))
    assert open_cache(bucketed).row("clips/008.mp4").extra == {"zone": None}
    compact(bucketed)
    for path in fragments_of(bucketed):
        assert pq.read_schema(path).names[-1] == "zone"
    assert open_cache(bucketed).row("clips/008.mp4").extra == {"zone": None}
    assert open_cache(bucketed).index.equals(expected)


@pytest.mark.slow
def test_many_loose_rows_are_compacted_in_several_passes(tmp_path, committed):
    trees = [tmp_path / name for name in ("one", "several")]
    for root in trees:
        root.mkdir()
        (root / "manifest.json").write_text(MANIFEST.to_json())
        for n in range(20):
            rows = [replace(committed, video_id=f"{n % 15}/{i}", created_ns=n) for i in range(20)]
            add_fragment(root, n, rows)
    reports = [compact(trees[0]), compact(trees[1], rows_at_once=37)]
    assert reports[0] == reports[1]
    assert (reports[0].rows, reports[0].rows_dropped) == (300, 100)
    names = [[path.name for path in fragments_of(root)] for root in trees]
    assert names[0] == names[1]


def test_below_the_threshold_an_index_is_merged_and_from_then_on_kept_in_buckets(
    tmp_path, committed
):
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json())
    storage = open_storage(tmp_path)
    for n in range(2):
        add_fragment(tmp_path, n, [replace(committed, video_id=f"{n}{i}") for i in range(5)])
    compact_cache(storage, bucket_from_rows=11)
    assert [named_bucket(name) for name in fragment_names(storage)] == [None]
    add_fragment(tmp_path, 3, [failed_row("x")])
    compact_cache(storage, bucket_from_rows=11)
    assert None not in {named_bucket(name) for name in fragment_names(storage)}
    add_fragment(tmp_path, 4, [failed_row("y")])
    compact_cache(storage, bucket_from_rows=1000)
    assert None not in {named_bucket(name) for name in fragment_names(storage)}


def test_a_damaged_bucket_is_named_and_no_row_is_lost(bucketed):
    damaged = next(path for path in fragments_of(bucketed) if "-" in path.name)
    data = damaged.read_bytes()
    damaged.write_bytes(data[:40] + bytes(40) + data[80:])
    before = shutil.copytree(bucketed / "index", bucketed / "copy")
    with pytest.raises(IndexCorruptError, match=damaged.stem):
        compact(bucketed)
    assert {path.name for path in before.iterdir()} <= {p.name for p in fragments_of(bucketed)}
