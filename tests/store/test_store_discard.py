"""What is damaged goes out of service, and rows that say so are judged by one rule."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.discard import discard_damage
from pipeline.store.fragment import rows_to_table
from pipeline.store.index import read_index
from pipeline.store.merge import Fragment, merge_fragments
from pipeline.store.verify import verify_cache
from schemas.errors import CacheError, VideoNotCachedError
from schemas.index import STATUSES
from tests.store.sample_cache import build, failed_row, fragment_of, fragments_of, make_sample
from tests.store.test_store_compact import (
    NOT_SHRUNK,
    add_fragment,
    any_row,
    check_every_step,
    digest,
)
from tests.store.test_store_damage import flip, forge


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    (row,) = build(tmp_path_factory.mktemp("cache"), make_sample().pending("v"))
    return row


@pytest.fixture
def cache(tmp_path):
    """Videos "0" to "3" in one shard."""
    build(tmp_path, *(make_sample(seed=n).pending(f"{n}", key=f"{n}" * 64) for n in range(4)))
    return tmp_path


def damaged_videos(root: Path) -> list[str]:
    table = read_index(open_storage(root))
    pairs = zip(table["video_id"].to_pylist(), table["status"].to_pylist(), strict=True)
    return [video_id for video_id, status in pairs if status == "damaged"]


def discard(root: Path):
    return discard_damage(open_storage(root), list(verify_cache(open_storage(root))))


def flip_features(root: Path, *video_ids: str) -> None:
    for video_id in video_ids:
        row = open_cache(root).row(video_id)
        flip(root / "shards" / f"{row.shard}.safetensors", row.offset + row.num_bytes - 1)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "video_id": st.sampled_from("ab"),
            "status": st.sampled_from(["ok", "ok", "damaged", *STATUSES]),
            "content_sha256": st.sampled_from([None, "c" * 64, "d" * 64]),
            "created_ns": st.integers(0, 4),
            "writer": st.sampled_from(["one", "two", "three"]),
        }
    ),
    min_size=1,
    max_size=5,
)


def winner_by_loops(rows):
    """The rule said for the rows of one video."""
    lost_before = max((r.created_ns for r in rows if r.status == "damaged"), default=-1)
    standing = [r for r in rows if r.status == "ok" and r.created_ns >= lost_before]

    def counts(row):
        if row.status in ("ok", "damaged"):
            return True
        return not any(row.content_sha256 in (None, other.content_sha256) for other in standing)

    return max(
        filter(counts, rows),
        key=lambda r: (r.created_ns, r.shard or "", r.status, r.content_sha256 or "", r.writer),
    )


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_any_rows_give_the_winners_of_the_plain_loop(committed, fragments):
    parts, by_video = [], {}
    for n, fields in enumerate(fragments):
        rows = [any_row(committed, shard=digest(n), **each) for each in fields]
        parts.append(Fragment(digest(n), rows_to_table(rows)))
        for row in rows:
            by_video.setdefault(row.video_id, []).append(row)
    columns = ("status", "created_ns", "content_sha256", "shard", "writer")
    found = merge_fragments(parts).select(columns).to_pylist()
    winners = [winner_by_loops(by_video[video_id]) for video_id in sorted(by_video)]
    assert found == [{name: getattr(row, name) for name in columns} for row in winners]


UNIQUE_ROWS = ROWS.map(lambda rows: list({row["video_id"]: row for row in rows}.values()))


@pytest.mark.slow
@settings(max_examples=12, phases=NOT_SHRUNK)
@given(st.lists(UNIQUE_ROWS, min_size=1, max_size=4), st.integers(1, 3), st.sampled_from([1, 100]))
def test_compaction_keeps_the_table_at_every_step_with_damaged_rows(
    tmp_path_factory, committed, fragments, max_rows, bucket_rows
):
    check_every_step(tmp_path_factory.mktemp("cache"), committed, fragments, max_rows, bucket_rows)


def fields(video_id, status, created_ns, writer, content=None):
    return {
        "video_id": video_id,
        "status": status,
        "created_ns": created_ns,
        "writer": writer,
        "content_sha256": content and content * 64,
    }


TIED_ROWS = [
    [fields("b", "ok", 1, "three", "d"), fields("a", "damaged", 4, "one")],
    [fields("b", "ok", 3, "one", "d")],
    [fields("b", "damaged", 3, "two"), fields("a", "quarantined", 4, "two", "c")],
    [fields("a", "ok", 2, "two"), fields("b", "damaged", 4, "one", "c")],
    [fields("a", "damaged", 2, "two", "c"), fields("b", "damaged", 0, "two")],
]
"""A damaged row stays as a witness beside the quarantined one of the same moment that wins."""


@pytest.mark.parametrize("bucket_rows", [1, 6, 100])
@pytest.mark.parametrize("max_rows", [1, 2, 3, 9])
def test_rows_of_one_moment_are_told_apart_alike_however_they_are_merged(
    tmp_path, committed, max_rows, bucket_rows
):
    check_every_step(tmp_path, committed, TIED_ROWS, max_rows, bucket_rows)


@pytest.mark.slow
@settings(max_examples=50, phases=NOT_SHRUNK)
@example(TIED_ROWS, 2, 100)
@example(TIED_ROWS, 3, 100)
@given(
    st.lists(UNIQUE_ROWS, min_size=3, max_size=7), st.integers(1, 3), st.sampled_from([1, 6, 100])
)
def test_compaction_keeps_the_table_of_many_more_sets_with_damaged_rows(
    tmp_path_factory, committed, fragments, max_rows, bucket_rows
):
    check_every_step(tmp_path_factory.mktemp("cache"), committed, fragments, max_rows, bucket_rows)


def test_a_failure_after_damage_counts_and_compaction_does_not_bring_lost_tensors_back(
    tmp_path, committed
):
    build(tmp_path)
    gone = failed_row("v", status="damaged", created_ns=committed.created_ns + 1)
    failure = failed_row("v", content_sha256=committed.content_sha256, created_ns=100)
    for name, row in enumerate((committed, gone, failure)):
        add_fragment(tmp_path, name, [row])
    for _ in range(3):
        assert read_index(open_storage(tmp_path))["status"].to_pylist() == ["failed"]
        compact_cache(open_storage(tmp_path))
    assert read_index(open_storage(tmp_path))["created_ns"].to_pylist() == [100]


def test_merged_fragments_of_equal_bytes_are_counted_once(tmp_path, committed):
    build(tmp_path)
    gone = failed_row("v", status="damaged", created_ns=committed.created_ns + 1)
    failure = failed_row("v", content_sha256=committed.content_sha256, created_ns=100)
    for name, row in enumerate((committed, gone, gone, failure)):
        add_fragment(tmp_path, name, [row])
    report = compact_cache(open_storage(tmp_path), max_fragment_rows=1)
    assert report.fragments_after == len(list((tmp_path / "index").iterdir())) == 2


def test_verify_changes_nothing_and_tells_what_to_encode_again_and_what_to_do_next(cache):
    flip_features(cache, "1", "3")
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli, ["verify", str(cache), "--format", "csv"])
    assert result.exit_code == 3
    assert [line.split(",")[:2] for line in result.stdout.splitlines()[1:]] == [
        ["damaged_video", "1"],
        ["damaged_video", "3"],
    ]
    assert result.stderr.splitlines() == [
        "2 damaged, 0 stray files",
        "encode again: 1",
        "encode again: 3",
        f"next: tokenreel verify {cache} --discard",
    ]
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before


def test_discarded_videos_say_so_when_they_are_loaded_and_are_counted(cache):
    flip_features(cache, "1", "3")
    result = CliRunner().invoke(cli, ["verify", str(cache), "--discard"])
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1:] == [
        "out of service: videos 2, index fragments 0",
        f"next: tokenreel build CORPUS --out {cache}",
    ]
    opened = open_cache(cache)
    assert list(opened.ids()) == ["0", "2"]
    with pytest.raises(VideoNotCachedError, match=r"as damaged .ChecksumError: .* Run the build"):
        opened.load("1")
    row = opened.row("1")
    assert (row.path, row.size_bytes, row.content_sha256) == ("/videos/1", 1000, "c" * 64)
    assert (row.created_ns, row.error_kind, row.shard) == (8, "ChecksumError", None)
    status = CliRunner().invoke(cli, ["status", str(cache), "--format", "csv"]).stdout
    assert "damaged,ChecksumError,2," in status
    assert list(verify_cache(open_storage(cache))) == []


def test_discarding_twice_or_from_old_findings_changes_nothing_more(cache):
    flip_features(cache, "1")
    findings = list(verify_cache(open_storage(cache)))
    discard_damage(open_storage(cache), findings)
    once = fragments_of(cache)
    assert discard_damage(open_storage(cache), findings).videos == ()
    assert discard(cache).videos == ()
    assert fragments_of(cache) == once


def test_a_video_encoded_again_while_the_cache_was_verified_stays(cache):
    flip_features(cache, "1", "2")
    findings = list(verify_cache(open_storage(cache)))
    build(cache, make_sample(seed=1).pending("1", key="1" * 64, created_ns=8, attempts=2))
    assert discard_damage(open_storage(cache), findings).videos == ("2",)
    assert damaged_videos(cache) == ["2"]
    open_cache(cache).load("1")


def test_every_video_of_a_shard_whose_header_stock_readers_refuse_is_discarded(cache):
    (shard,) = (cache / "shards").iterdir()
    flip(shard, 0)
    flip_features(cache, "1")
    assert set(discard(cache).videos) == set("0123")
    assert open_cache(cache).row("1").error_kind == "ChecksumError"
    assert open_cache(cache).row("2").error_kind == "CacheCorruptError"


def test_a_fragment_that_cannot_be_read_is_set_aside_and_the_rest_is_served(cache):
    (unreadable,) = fragments_of(cache)
    build(cache, make_sample(seed=9).pending("9", key="9" * 64))
    unreadable.write_bytes(b"no parquet")
    result = CliRunner().invoke(cli, ["verify", str(cache), "--discard"])
    assert (result.exit_code, result.stderr.splitlines()[1:3]) == (
        0,
        ["out of service: videos 0, index fragments 1", f"set aside: {unreadable}.damaged"],
    )
    assert unreadable.with_name(f"{unreadable.name}.damaged").read_bytes() == b"no parquet"
    assert list(open_cache(cache).ids()) == ["9"]
    assert [f.kind for f in verify_cache(open_storage(cache))] == ["orphan_shard"]


def test_a_row_that_contradicts_itself_is_discarded_with_its_further_columns(tmp_path):
    (row,) = build(tmp_path, make_sample().pending("v", extra={"place": "kitchen"}))
    forge(tmp_path, replace(row, extra={}), tokens_after=39)
    assert discard(tmp_path).videos == ("v",)
    assert open_cache(tmp_path).row("v").error_kind == "ShapeError"
    forge_again = replace(row, video_id="w", fingerprint="e" * 64)
    add_fragment(tmp_path, "other", [forge_again])
    assert discard(tmp_path).videos == ("w",)
    assert open_cache(tmp_path).row("w").extra == {"place": "kitchen"}


def test_a_fragment_that_cannot_be_renamed_is_an_error_that_names_it(cache):
    fragment_of(cache).write_bytes(b"no parquet")
    findings = list(verify_cache(open_storage(cache)))
    (cache / "index" / f"{fragment_of(cache).name}.damaged").mkdir()
    with pytest.raises(CacheError, match=f"cannot rename {fragment_of(cache)}"):
        discard_damage(open_storage(cache), findings)


def test_rows_of_a_bucket_are_kept_when_only_what_finds_them_is_damaged(cache):
    compact_cache(open_storage(cache), bucket_from_rows=1)
    table = read_index(open_storage(cache))
    path = max(fragments_of(cache))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"schema"', b'{"shcema"'))
    (finding,) = verify_cache(open_storage(cache))
    assert (finding.kind, finding.where) == ("damaged_fragment", str(path))
    discard(cache)
    assert list(verify_cache(open_storage(cache))) == []
    assert read_index(open_storage(cache)).equals(table)
    for video_id in "0123":
        open_cache(cache).load(video_id)


def test_a_row_of_the_last_moment_cannot_be_outdone_and_its_fragment_is_named(tmp_path):
    (row,) = build(tmp_path, make_sample().pending("v"))
    forge(tmp_path, row, created_ns=2**63 - 1, tokens_after=39)
    result = CliRunner().invoke(cli, ["verify", str(tmp_path), "--discard"])
    assert result.exit_code == 3
    assert f"remove by hand: {fragment_of(tmp_path)}" in result.stderr.splitlines()
