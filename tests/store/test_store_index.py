import hashlib
import time
from dataclasses import replace
from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.fragment import fragment_file, rows_to_table
from pipeline.store.index import Fragment, Index, merge_fragments, read_index
from schemas.errors import IndexCorruptError, VideoNotCachedError
from tests.store.sample_cache import build, failed_row, make_sample


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    (row,) = build(tmp_path_factory.mktemp("cache"), make_sample().pending("v"))
    return row


def winner(*rows):
    """The row that counts, whatever the order in which fragments are read."""
    found = set()
    fragments = [Fragment(f"{n:064x}", rows_to_table([row])) for n, row in enumerate(rows)]
    for ordered in (fragments, fragments[::-1]):
        table = merge_fragments(ordered)
        assert table.num_rows == 1
        found.add((table["status"][0].as_py(), table["created_ns"][0].as_py()))
    assert len(found) == 1
    return found.pop()


def test_the_later_of_two_committed_rows_counts(committed):
    assert winner(committed, replace(committed, created_ns=9)) == ("ok", 9)
    assert winner(replace(committed, created_ns=9), committed) == ("ok", 9)


def test_a_committed_row_outweighs_later_failures_of_the_same_or_unknown_content(committed):
    same = failed_row("v", content_sha256=committed.content_sha256, created_ns=9)
    unknown = failed_row("v", content_sha256=None, created_ns=10)
    quarantined = failed_row("v", status="quarantined", created_ns=11)
    assert winner(committed, same, unknown, quarantined) == ("ok", 7)


def test_a_later_failure_of_another_content_counts_and_an_earlier_one_does_not(committed):
    other = failed_row("v", content_sha256="d" * 64, created_ns=9)
    assert winner(committed, other) == ("failed", 9)
    assert winner(committed, replace(other, created_ns=1)) == ("ok", 7)


def test_the_rule_has_one_answer_for_rows_that_beat_each_other_in_a_circle(committed):
    other = failed_row("v", content_sha256="d" * 64, created_ns=8)
    same = failed_row("v", content_sha256=committed.content_sha256, created_ns=9)
    assert winner(committed, other, same) == ("failed", 8)


def test_the_later_of_two_failures_counts():
    assert winner(failed_row("v"), failed_row("v", created_ns=8)) == ("failed", 8)


@pytest.mark.parametrize(
    ("lesser", "greater"),
    [
        ({"shard": "0" * 64, "writer": "z"}, {"shard": "f" * 64, "writer": "a"}),
        ({"writer": "one"}, {"writer": "two"}),
        ({"attempts": 1}, {"attempts": 2}),
        ({"codec": None}, {"codec": "h264"}),
        ({"nested": False}, {"nested": True}),
        ({"keep_ratio": 0.1}, {"keep_ratio": 0.2}),
        ({"extra": {"score": 1, "zone": 9}}, {"extra": {"score": 2, "zone": 1}}),
        ({"extra": {"score": 2}}, {"extra": {"score": 2, "zone": 1}}),
    ],
    ids=str,
)
def test_ties_go_to_what_the_rows_hold_whatever_fragments_they_stand_in(committed, lesser, greater):
    rows = [replace(committed, **changes) for changes in (lesser, greater)]
    for ordered in (rows, rows[::-1]):
        tables = [Fragment(f"{n:064x}", rows_to_table([row])) for n, row in enumerate(ordered)]
        assert Index(merge_fragments(tables)).row("v") == Index(
            merge_fragments([*tables, tables[1], Fragment("", rows_to_table([rows[1]]))])
        ).row("v")
        found = Index(merge_fragments(tables)).row("v")
        assert replace(found, extra={}) == replace(rows[1], extra={})
        assert found.extra.items() >= rows[1].extra.items()


def test_between_failures_of_one_moment_the_status_decides():
    rows = [failed_row("v", status=status) for status in ("quarantined", "damaged", "failed")]
    for ordered in permutations(rows):
        tables = [Fragment(f"{n:064x}", rows_to_table([row])) for n, row in enumerate(ordered)]
        assert merge_fragments(tables)["status"].to_pylist() == ["quarantined"]


def test_videos_beside_a_duplicated_one_are_all_kept_in_order(committed):
    rows = [replace(committed, video_id=name) for name in ("c", "a", "b", "a", "Z")]
    table = merge_fragments([Fragment(f"{n:064x}", rows_to_table([r])) for n, r in enumerate(rows)])
    assert table["video_id"].to_pylist() == ["Z", "a", "b", "c"]


def test_further_columns_are_joined_and_conflicting_types_become_text():
    parts = [
        [failed_row("a", extra={"label": 1, "only": True, "none": None})],
        [failed_row("b", extra={"label": "x"})],
        [failed_row("c", extra={"label": 2, "none": 1.5}), failed_row("d", extra={"label": "y"})],
    ]
    table = merge_fragments(
        [Fragment(f"{n:064x}", rows_to_table(rows)) for n, rows in enumerate(parts)]
    )
    assert table["label"].to_pylist() == ["1", "x", "2", "y"]
    assert table["only"].to_pylist() == [True, None, None, None]
    assert table["none"].to_pylist() == [None, None, 1.5, None]


def test_a_whole_number_beyond_64_bits_is_stored_as_text():
    table = rows_to_table([failed_row("a", extra={"n": 2**70}), failed_row("b", extra={"n": 1})])
    assert table["n"].to_pylist() == [str(2**70), "1"]


def test_a_cache_without_fragments_is_empty(tmp_path):
    build(tmp_path)
    assert len(open_cache(tmp_path)) == 0
    assert list(open_cache(tmp_path).ids()) == []
    with pytest.raises(VideoNotCachedError, match="it is empty"):
        open_cache(tmp_path).load("v")


def test_a_file_name_in_another_folder_is_suggested(committed):
    names = [f"deep/folder{n}/clip{n}.mp4" for n in range(1000)]
    index = Index(rows_to_table([replace(committed, video_id=name) for name in sorted(names)]))
    with pytest.raises(VideoNotCachedError, match=r"did you mean 'deep/folder700/clip700\.mp4'"):
        index.row("deep/clip700.mp4")


@pytest.mark.slow
def test_a_hundred_thousand_videos_open_within_two_seconds_of_work(tmp_path, committed):
    table = rows_to_table([committed])
    count = 100_000
    many = table.take(pa.array([0] * count))
    ids = pa.array([f"folder{n % 97}/video{n:07}.mp4" for n in range(count)])
    place = many.schema.get_field_index("video_id")
    many = many.set_column(place, "video_id", ids)
    sink = pa.BufferOutputStream()
    pq.write_table(many, sink, compression="zstd", row_group_size=65536)
    path = tmp_path / fragment_file(hashlib.sha256(b"many").hexdigest())
    path.parent.mkdir()
    path.write_bytes(sink.getvalue())
    started = time.process_time()
    index = Index(read_index(open_storage(tmp_path)))
    seconds = time.process_time() - started
    assert index.row("folder0/video0000097.mp4").tokens_after == 40
    assert seconds < 2


def test_a_flipped_bit_in_the_index_is_an_error_or_changes_nothing(tmp_path):
    build(tmp_path, *(make_sample(seed=n).pending(f"{n}", key=f"{n}" * 64) for n in range(4)))
    [fragment] = (tmp_path / "index").iterdir()
    data, expected = fragment.read_bytes(), read_index(open_storage(tmp_path))
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(data), 200):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(random.integers(8))
        fragment.write_bytes(flipped)
        try:
            assert read_index(open_storage(tmp_path)).equals(expected)
        except IndexCorruptError:
            refused += 1
    assert refused > 100
