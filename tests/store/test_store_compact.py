"""Compaction beside readers and writers, killed at any point, and what it may sweep."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.storage.local import LocalStorage
from pipeline.store.commit import commit_videos
from pipeline.store.compact import BUCKET_FROM_ROWS, compact_cache
from pipeline.store.fragment import fragment_file, named_bucket, pack_fragment
from pipeline.store.fragment_checks import MAX_ROW_GROUP_BYTES
from pipeline.store.index import read_index
from pipeline.store.shard import shard_file, write_shard
from pipeline.store.sweep import Sweep
from pipeline.store.verify import verify_cache
from schemas.errors import CacheNotFoundError, IndexCorruptError
from tests.store.sample_cache import (
    MANIFEST,
    build,
    failed_row,
    fragment_of,
    fragments_of,
    make_sample,
    shard_of,
)

REPOSITORY = Path(__file__).parents[2]
HOUR = 3600


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def add_fragment(root: Path, name: object, rows) -> Path:
    path = root / fragment_file(digest(name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack_fragment(rows))
    return path


def make_old(*paths: Path, seconds: float = 2 * HOUR) -> None:
    then = time.time() - seconds
    for path in paths:
        os.utime(path, (then, then))


def orphan(root: Path, seed: int, *, age_seconds: float = 2 * HOUR) -> Path:
    """A shard that no row refers to, as a writer leaves that died before its fragment."""
    record = make_sample(seed=seed).record(f"{seed:064x}")
    path = root / shard_file(write_shard(open_storage(root), [record]).name)
    make_old(path, seconds=age_seconds)
    return path


def commit_orphan(root: Path, seed: int, **changes) -> None:
    """The commit that a writer of the same content makes later; it replaces the shard."""
    build(root, make_sample(seed=seed).pending(f"late{seed}", key=f"{seed:064x}", **changes))


def files_of(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=[BUCKET_FROM_ROWS, 1], ids=["merged", "in buckets"])
def bucket_from_rows(request, monkeypatch):
    """From how many rows on compaction in this process makes buckets."""
    monkeypatch.setitem(compact_cache.__kwdefaults__, "bucket_from_rows", request.param)
    return request.param


either_way = pytest.mark.usefixtures("bucket_from_rows")


def is_compact(root: Path) -> bool:
    """Whether one fragment is left, or at most one of each bucket and nothing else."""
    buckets = [named_bucket(path.stem) for path in fragments_of(root)]
    return len(buckets) == 1 or (None not in buckets and len(set(buckets)) == len(buckets))


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    (row,) = build(tmp_path_factory.mktemp("cache"), make_sample().pending("v"))
    return row


@pytest.fixture(scope="module")
def finished_cache(tmp_path_factory):
    """Five videos and two failures in six fragments; v2 was encoded twice, w0 failed twice."""
    root = tmp_path_factory.mktemp("finished") / "cache"
    for n in (0, 1):
        seeds = {f"v{n}{i}": 2 * n + i for i in (0, 1)}
        build(root, *(make_sample(seed=s).pending(v, key=digest(v)) for v, s in seeds.items()))
    for n in (8, 9):
        build(root, make_sample(seed=n).pending("v2", key=digest(n), created_ns=n))
    build(root, failed_row("w0"), failed_row("w1"))
    build(root, failed_row("w0", created_ns=8, attempts=2), failed_row("v11", created_ns=9))
    return root


@pytest.fixture
def cache(finished_cache, tmp_path):
    return shutil.copytree(finished_cache, tmp_path / "cache")


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "video_id": st.sampled_from("abcdef"),
            "status": st.sampled_from(["ok", "ok", "failed", "quarantined"]),
            "content_sha256": st.sampled_from([None, "c" * 64, "d" * 64]),
            "created_ns": st.integers(0, 3),
            "writer": st.sampled_from(["one", "two", "three"]),
            "extra": st.dictionaries(
                st.sampled_from(["zone", "label", "Score"]),
                st.none()
                | st.booleans()
                | st.integers(-(2**63), 2**63 - 1)
                | st.text(max_size=3)
                | st.floats(allow_nan=False)
                | st.just(7),
            ),
        }
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda fields: fields["video_id"],
)


NOT_SHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.mark.slow
@settings(max_examples=8, phases=NOT_SHRUNK)
@given(st.lists(ROWS, min_size=1, max_size=3), st.integers(1, 9), st.sampled_from([1, 100]))
def test_the_table_is_the_same_before_after_and_at_every_step_between(
    tmp_path_factory, committed, fragments, max_rows, bucket_rows
):
    check_every_step(tmp_path_factory.mktemp("cache"), committed, fragments, max_rows, bucket_rows)


@pytest.mark.slow
@settings(max_examples=60, phases=NOT_SHRUNK)
@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(1, 9), st.sampled_from([1, 6, 100]))
def test_the_table_is_the_same_for_many_more_sets_of_fragments(
    tmp_path_factory, committed, fragments, max_rows, bucket_rows
):
    check_every_step(tmp_path_factory.mktemp("cache"), committed, fragments, max_rows, bucket_rows)


def check_every_step(root: Path, committed, fragments, max_rows: int, bucket_rows: int) -> None:
    def compact():
        return compact_cache(
            open_storage(root),
            max_fragment_rows=max_rows,
            bucket_from_rows=bucket_rows,
            rows_at_once=max_rows,
        )

    (root / "manifest.json").write_text(MANIFEST.to_json())
    for n, rows in enumerate(fragments):
        add_fragment(root, n, [any_row(committed, shard=digest(n), **fields) for fields in rows])
    before = {path: path.read_bytes() for path in fragments_of(root)}
    table = read_index(open_storage(root))

    report = compact()

    after = fragments_of(root)
    assert (report.fragments_after, report.rows) == (len(after), table.num_rows)
    removed = [path for path in before if path not in after]
    for place in range(len(removed), -1, -1):
        assert read_index(open_storage(root)).equals(table)
        if place:
            removed[place - 1].write_bytes(before[removed[place - 1]])
    compact()
    compact()
    assert read_index(open_storage(root)).equals(table)
    left = fragments_of(root)
    assert sum(pq.read_metadata(path).num_rows for path in left) == table.num_rows
    compact()
    assert fragments_of(root) == left


def any_row(committed, *, status, shard, **fields):
    if status == "ok":
        return replace(committed, shard=shard, **fields)
    return failed_row(status=status, **fields)


@either_way
def test_a_row_that_outweighs_a_failure_the_winner_does_not_stays_until_that_is_gone(
    tmp_path, committed
):
    build(tmp_path)
    winner = replace(committed, created_ns=8, content_sha256="d" * 64)
    failure = failed_row("v", content_sha256="c" * 64, created_ns=9)
    add_fragment(tmp_path, 0, [committed, winner, failure])
    rows = []
    for _ in range(3):
        compact_cache(open_storage(tmp_path))
        assert read_index(open_storage(tmp_path))["created_ns"].to_pylist() == [8]
        rows.append(pq.read_metadata(fragment_of(tmp_path)).num_rows)
    assert rows == [2, 1, 1]


@either_way
def test_whole_numbers_too_long_for_a_double_are_rounded_beside_decimal_ones(tmp_path, committed):
    build(tmp_path)
    add_fragment(tmp_path, 0, [replace(committed, video_id="a", extra={"n": 2**60 + 1})])
    add_fragment(tmp_path, 1, [replace(committed, video_id="b", extra={"n": 0.5})])
    compact_cache(open_storage(tmp_path))
    assert open_cache(tmp_path).index["n"].to_pylist() == [2.0**60, 0.5]


def test_many_fragments_become_one_that_pandas_and_duckdb_read(cache):
    table = read_index(open_storage(cache))
    report = compact_cache(open_storage(cache))
    assert (report.fragments_before, report.fragments_after) == (6, 1)
    assert (report.rows, report.rows_dropped) == (7, 3)
    assert read_index(open_storage(cache)).equals(table)
    frame = pd.read_parquet(fragment_of(cache))
    assert frame["video_id"].tolist() == ["v00", "v01", "v10", "v11", "v2", "w0", "w1"]
    pattern = str(cache / "index" / "*.parquet")
    found = duckdb.connect().execute(f"SELECT count(*), sum(tokens_after) FROM '{pattern}'")
    assert found.fetchall() == [(7, 200)]


@either_way
def test_a_compact_cache_is_left_as_it_is(cache):
    compact_cache(open_storage(cache), grace_seconds=0)
    files = files_of(cache)
    report = compact_cache(open_storage(cache), grace_seconds=0)
    assert report.lines()[0] == f"fragments: {len(fragments_of(cache))}, already compact"
    assert files_of(cache) == files


@either_way
def test_a_dry_run_reports_the_same_and_changes_nothing(cache):
    orphan(cache, 50)
    (cache / "index" / "notes.txt").write_bytes(b"mine")
    for grace_seconds in (HOUR, 0):
        files = files_of(cache)
        planned = compact_cache(open_storage(cache), grace_seconds=grace_seconds, dry_run=True)
        assert files_of(cache) == files
        done = compact_cache(open_storage(cache), grace_seconds=grace_seconds)
        assert planned == replace(done, is_dry_run=True)
        assert planned.shards_swept == 1


def test_fragments_that_are_large_and_whole_are_not_rewritten(tmp_path, committed):
    build(tmp_path)
    large = [replace(committed, video_id=f"v{n}") for n in range(5)]
    kept = add_fragment(tmp_path, "large", large)
    stale = add_fragment(
        tmp_path, "stale", [replace(row, video_id=row.video_id + "x") for row in large]
    )
    for n in range(3):
        add_fragment(
            tmp_path, n, [failed_row(f"w{n}"), replace(committed, video_id="v0x", created_ns=9)]
        )
    table = read_index(open_storage(tmp_path))
    report = compact_cache(open_storage(tmp_path), max_fragment_rows=8)
    assert (report.fragments_before, report.fragments_after, report.rows_dropped) == (5, 2, 3)
    assert kept in fragments_of(tmp_path)
    assert stale not in fragments_of(tmp_path)
    assert read_index(open_storage(tmp_path)).equals(table)


def test_a_merged_fragment_holds_no_more_rows_than_asked(tmp_path, committed):
    build(tmp_path)
    for n in range(25):
        add_fragment(tmp_path, n, [replace(committed, video_id=f"v{n:02}")])
    compact_cache(open_storage(tmp_path), max_fragment_rows=10)
    parts = sorted(pd.read_parquet(path)["video_id"].tolist() for path in fragments_of(tmp_path))
    assert [len(part) for part in parts] == [9, 8, 8]
    assert [video_id for part in parts for video_id in part] == [f"v{n:02}" for n in range(25)]


@pytest.mark.slow
def test_row_groups_are_cut_smaller_where_further_columns_are_huge(tmp_path):
    build(tmp_path)
    num_rows, text = 17, "x" * 2**25
    assert num_rows * len(text) > MAX_ROW_GROUP_BYTES
    for n in range(num_rows):
        add_fragment(tmp_path, n, [failed_row(f"v{n:02}", extra={"caption": text})])
    compact_cache(open_storage(tmp_path))
    assert pq.read_metadata(fragment_of(tmp_path)).num_row_groups > 1
    assert len(open_cache(tmp_path).failed()) == num_rows


@either_way
def test_a_damaged_fragment_is_named_and_nothing_is_changed(cache):
    orphan(cache, 50)
    damaged = fragments_of(cache)[3]
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    files = files_of(cache)
    with pytest.raises(IndexCorruptError, match=damaged.stem):
        compact_cache(open_storage(cache), grace_seconds=0)
    assert files_of(cache) == files


@either_way
def test_a_fragment_that_is_a_link_to_nothing_is_named(cache):
    link = cache / fragment_file(digest("link"))
    link.symlink_to(cache / "nothing")
    with pytest.raises(IndexCorruptError, match=f"{link.stem}.* a link to nothing"):
        compact_cache(open_storage(cache))
    assert [finding.where for finding in verify_cache(open_storage(cache))] == [str(link)]


@either_way
def test_a_shard_name_that_leads_out_of_the_cache_touches_nothing_there(tmp_path):
    build(tmp_path)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"mine")
    make_old(outside)
    files = files_of(tmp_path)
    hostile = [failed_row("v", shard="../outside"), failed_row("v", created_ns=9)]
    add_fragment(tmp_path, 0, hostile)
    assert compact_cache(open_storage(tmp_path), grace_seconds=0).rows_dropped == 1
    assert files.items() <= files_of(tmp_path).items()


def test_a_folder_without_a_manifest_is_refused_and_left_alone(cache):
    (cache / "manifest.json").unlink()
    files = files_of(cache)
    with pytest.raises(CacheNotFoundError, match=r"manifest\.json is not there"):
        compact_cache(open_storage(cache))
    assert files_of(cache) == files


@either_way
def test_an_empty_cache_is_compact(tmp_path):
    build(tmp_path)
    assert compact_cache(open_storage(tmp_path)).lines()[0] == "fragments: 0, already compact"


@either_way
def test_the_same_task_committed_again_after_compaction_gives_one_row(tmp_path):
    first, again = (make_sample().pending("v", created_ns=n) for n in (1, 2))
    other = make_sample(seed=1).pending("w", key="b" * 64)
    build(tmp_path, first)
    name = fragment_of(tmp_path)
    build(tmp_path, other)
    compact_cache(open_storage(tmp_path))
    assert not name.exists()
    build(tmp_path, again)
    assert name.exists()
    for _ in range(2):
        assert read_index(open_storage(tmp_path))["created_ns"].to_pylist() == [2, 7]
        open_cache(tmp_path).load("v")
        compact_cache(open_storage(tmp_path), grace_seconds=0)
    assert is_compact(tmp_path)
    assert name not in fragments_of(tmp_path)


@either_way
def test_two_compactions_at_once_keep_every_row(cache):
    table = read_index(open_storage(cache))
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: compact_cache(open_storage(cache)), range(8)))
    assert {report.rows for report in reports} == {7}
    assert read_index(open_storage(cache)).equals(table)
    assert is_compact(cache)


@either_way
def test_an_orphan_is_swept_once_it_is_older_than_the_grace_period(cache):
    old, young = orphan(cache, 50), orphan(cache, 51, age_seconds=HOUR / 2)
    size = old.stat().st_size
    report = compact_cache(open_storage(cache))
    assert (report.shards_swept, report.bytes_freed) == (1, size)
    assert not old.exists()
    assert young.exists()
    compact_cache(open_storage(cache), grace_seconds=HOUR / 4)
    assert not young.exists()
    assert [finding for finding in verify_cache(open_storage(cache)) if finding.is_damage] == []


def test_with_no_grace_period_every_orphan_goes(cache):
    shards = {orphan(cache, 50, age_seconds=age) for age in (0, -HOUR)}
    compact_cache(open_storage(cache), grace_seconds=0)
    assert not any(path.exists() for path in shards)
    assert list(verify_cache(open_storage(cache))) == []


@either_way
def test_the_shard_of_a_dropped_row_serves_older_readers_for_the_grace_period(tmp_path):
    build(tmp_path, make_sample().pending("v"))
    shard = shard_of(tmp_path)
    make_old(shard)
    reader = open_cache(tmp_path)
    build(tmp_path, make_sample(seed=1).pending("v", key="b" * 64, created_ns=8))
    assert compact_cache(open_storage(tmp_path)).shards_waiting == 1
    assert compact_cache(open_storage(tmp_path)).shards_waiting == 1
    reader.load("v")
    make_old(shard)
    assert compact_cache(open_storage(tmp_path)).shards_swept == 1
    assert shard_of(tmp_path) != shard
    open_cache(tmp_path).load("v")


@either_way
def test_shards_become_young_when_all_is_published_and_before_the_last_row_goes(cache, monkeypatch):
    done = []

    def record(deed):
        carry_out = getattr(LocalStorage, deed)

        def recorded(storage, name, *args):
            done.append((deed, name))
            return carry_out(storage, name, *args)

        monkeypatch.setattr(LocalStorage, deed, recorded)

    for deed in ("create", "touch", "flush", "remove"):
        record(deed)
    compact_cache(open_storage(cache))
    steps = [deed for deed, _ in groupby(done, key=itemgetter(0))]
    assert steps[-5:] == ["create", "touch", "flush", "remove", "flush"]
    last_created = max(i for i, (deed, _) in enumerate(done) if deed == "create")
    touched = {cache / name for deed, name in done[last_created:] if deed == "touch"}
    in_use = {cache / shard_file(shard) for shard in shards_in(read_index(open_storage(cache)))}
    assert touched
    assert touched == set((cache / "shards").iterdir()) - in_use


def shards_in(table: pa.Table) -> set[str]:
    return set(table["shard"].drop_null().to_pylist())


@either_way
def test_files_that_are_not_ours_are_left_alone_and_counted(cache):
    name, shards, index = "e" * 64, cache / "shards", cache / "index"
    strangers = [
        shards / "model.safetensors",
        shards / f"{name}.parquet",
        index / f"{name}.safetensors",
        index / "notes.txt",
    ]
    for path in strangers:
        path.write_bytes(b"mine")
    link, folder = shards / f"{'f' * 64}.safetensors", shards / f"{'0' * 64}.safetensors"
    link.symlink_to(strangers[0])
    folder.mkdir()
    (cache / "notes.tmp").write_bytes(b"mine")
    assert compact_cache(open_storage(cache), grace_seconds=0).foreign_files == 6
    assert all(path.exists() for path in (*strangers, link, folder, cache / "notes.tmp"))


def test_temporary_files_are_swept_when_they_are_stale(cache):
    names = ["shards/.abc.tmp", "index/.abc.tmp", f".{'a' * 32}.tmp"]
    for name in names:
        (cache / name).write_bytes(b"half")
    assert compact_cache(open_storage(cache)).temporary_files_swept == 0
    make_old(*(cache / name for name in names))
    assert compact_cache(open_storage(cache)).temporary_files_swept == 3
    assert not any((cache / name).exists() for name in names)


@pytest.mark.parametrize("has_row", [False, True])
def test_a_shard_that_a_writer_replaces_before_it_is_set_aside_is_put_back(tmp_path, has_row):
    build(tmp_path)
    shard = orphan(tmp_path, 50)
    sweep = one_sweep(tmp_path)
    assert (
        sweep.standing(open_storage(tmp_path).stat(f"shards/{shard.name}"), shard.stem) == "unused"
    )
    if has_row:
        commit_orphan(tmp_path, 50)
        make_old(shard)
    else:
        write_shard(open_storage(tmp_path), [make_sample(seed=50).record(f"{50:064x}")])
    aside = sweep.set_aside(shard.stem)
    assert not shard.exists()
    sweep.settle(aside, shard.stem)
    assert sweep.counts["unused"] == 0
    assert list((tmp_path / "shards").iterdir()) == [shard]
    commit_orphan(tmp_path, 50)
    open_cache(tmp_path).load("late50")


def test_a_shard_that_a_writer_makes_anew_after_it_was_set_aside_stays(tmp_path):
    build(tmp_path)
    shard = orphan(tmp_path, 50)
    aside = one_sweep(tmp_path).set_aside(shard.stem)
    commit_orphan(tmp_path, 50)
    one_sweep(tmp_path).settle(aside, shard.stem)
    assert list((tmp_path / "shards").iterdir()) == [shard]
    open_cache(tmp_path).load("late50")


def test_a_shard_set_aside_is_put_back_when_a_new_fragment_cannot_be_read(tmp_path):
    build(tmp_path)
    shard = orphan(tmp_path, 50)
    aside = one_sweep(tmp_path).set_aside(shard.stem)
    commit_orphan(tmp_path, 51)
    fragment_of(tmp_path).write_bytes(b"no parquet")
    with pytest.raises(IndexCorruptError):
        one_sweep(tmp_path).settle(aside, shard.stem)
    assert shard.exists()


def test_what_a_killed_sweep_left_aside_is_put_back_if_a_row_refers_to_it_and_swept_if_not(cache):
    compact_cache(open_storage(cache), grace_seconds=0)
    used = set((cache / "shards").iterdir())
    for path in (*used, orphan(cache, 50)):
        make_old(cache / "shards" / one_sweep(cache).set_aside(path.stem))
    assert compact_cache(open_storage(cache)).shards_swept == 1
    assert set((cache / "shards").iterdir()) == used
    assert list(verify_cache(open_storage(cache))) == []


def one_sweep(root: Path) -> Sweep:
    return Sweep(open_storage(root), used=(), fragments=(), fading=(), grace_seconds=HOUR)


def test_the_verb_prints_a_report_for_people_and_one_for_programs(cache):
    orphan(cache, 50)
    dry = CliRunner().invoke(cli, ["compact", str(cache), "--dry-run"])
    assert (dry.exit_code, dry.stdout) == (0, "")
    assert dry.stderr.splitlines()[-5:-1] == [
        "dry run, nothing was changed",
        "fragments: 6, would be 1",
        "rows: 7, would drop: 3",
        "would sweep: shards 1, temporary files 0, 0.0 MB",
    ]
    done = CliRunner().invoke(cli, ["compact", str(cache), "--json", "--grace-seconds", "60"])
    assert json.loads(done.stdout) == {
        "fragments_before": 6,
        "fragments_replaced": 6,
        "fragments_after": 1,
        "rows": 7,
        "rows_dropped": 3,
        "shards_swept": 1,
        "shards_waiting": 1,
        "temporary_files_swept": 0,
        "bytes_freed": 7872,
        "foreign_files": 0,
        "is_dry_run": False,
    }
    fragment_of(cache).write_bytes(b"no parquet")
    failed = CliRunner().invoke(cli, ["compact", str(cache)])
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1].startswith(f"error: index fragment {cache}")


CHILD = """
import functools, itertools, os, random, shutil, signal, sys, time
from pathlib import Path
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.bucket_index import open_index
from pipeline.store.index import read_index
root, mode, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
compact_cache = functools.partial(compact_cache, bucket_from_rows=int(sys.argv[4]))
CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.utime")
if mode == "kill at":  # fork once for each point at which a compaction touches the cache folder
    for point in itertools.count():
        copy = shutil.copytree(root / "cache", root / str(point))
        child = os.fork()
        if not child:
            seen = 0
            def audit(event, args):
                global seen
                if event in CHANGES and str(root) in str(args[0]):
                    seen += 1
                    if seen > point:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(audit)
            compact_cache(open_storage(copy))
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
        print(point, flush=True)
if mode == "kill often":  # one compaction after the other, killed at random moments
    delays = random.Random(0)
    for _ in range(number):
        child = os.fork()
        if not child:
            while True:
                compact_cache(open_storage(root))
        time.sleep(delays.uniform(0.002, 0.12))
        os.kill(child, signal.SIGKILL)
        print(os.WIFSIGNALED(os.waitpid(child, 0)[1]), flush=True)
if mode == "compact":
    while not (root / "stop").exists():
        compact_cache(open_storage(root))
if mode == "write":
    from tests.store.sample_cache import build
    from tests.store.test_store_compact import COMMITS, storm_entries
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(COMMITS):
        build(root, *storm_entries(number, n))
if mode == "read":
    known, count = {}, 0
    while not (root / "stop").exists():
        table = read_index(open_storage(root)).select(["video_id", "status", "created_ns"])
        found = {row["video_id"]: row for row in table.to_pylist()}
        for video_id, row in known.items():
            assert found[video_id]["created_ns"] >= row["created_ns"], (row, found[video_id])
            assert found[video_id]["status"] == "ok" or row["status"] != "ok", video_id
        known, count = found, count + 1
    print(count, len(known))
if mode == "look up":  # by one index that stays open, and again by a new one
    count, known = 0, {}
    while not (root / "stop").exists():
        index = open_index(open_storage(root))
        known |= {video_id: 1 for video_id in index.ids()}
        for video_id in known:
            assert index.status(video_id) == "ok", video_id
        assert set(index.ids()) >= known.keys()
        count += 1
    print(count, len(known))
"""


def start(root: Path, mode: str, bucket_from_rows: int, number: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), mode, str(number), str(bucket_from_rows)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


@pytest.mark.slow
def test_a_compaction_killed_at_any_point_loses_nothing_and_the_next_one_tidies_up(
    cache, bucket_from_rows
):
    for seed in range(50, 57):
        orphan(cache, seed)
    for folder in ("index", "shards"):
        (cache / folder / ".abc.tmp").write_bytes(b"half")
        make_old(cache / folder / ".abc.tmp")
    table = read_index(open_storage(cache))
    output, errors = start(cache.parent, "kill at", bucket_from_rows).communicate(timeout=240)
    assert errors == ""
    points = output.splitlines()
    assert len(points) >= 28
    debris = set()
    for point in points:
        root = cache.parent / point
        assert read_index(open_storage(root)).equals(table)
        findings = list(verify_cache(open_storage(root)))
        assert not any(finding.is_damage for finding in findings)
        debris.add(len(findings))
        compact_cache(open_storage(root), grace_seconds=0)
        assert read_index(open_storage(root)).equals(table)
        assert list(verify_cache(open_storage(root))) == []
        assert is_compact(root)
    assert len(debris) > 3


COMMITS = 120


def storm_entries(writer: int, n: int):
    """What a writer commits: a video of its own, and one that every writer commits."""
    names = {f"{writer}-{n}": 1000 * (writer + 1) + n, f"shared-{n}": n}
    return [
        make_sample(seed=seed).pending(name, key=digest((writer, name)), created_ns=10 + writer)
        for name, seed in names.items()
    ]


@pytest.mark.slow
def test_readers_and_writers_miss_nothing_while_compactions_run_and_are_killed(
    tmp_path, bucket_from_rows
):
    build(tmp_path)
    for writer in (0, 1):
        for n in range(COMMITS):
            records = [entry.record for entry in storm_entries(writer, n)]
            make_old(tmp_path / shard_file(write_shard(open_storage(tmp_path), records).name))
    writers = [start(tmp_path, "write", bucket_from_rows, writer) for writer in (0, 1)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    modes = ("kill often", "compact", "read", "read", "look up")
    others = [start(tmp_path, mode, bucket_from_rows, 30) for mode in modes]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    killer, *endless = others
    assert [writer.communicate(timeout=240)[1] for writer in writers] == ["", ""]
    output, errors = killer.communicate(timeout=240)
    (tmp_path / "stop").touch()
    ended = [process.communicate(timeout=240) for process in endless]
    assert [errors, *(text for _, text in ended)] == [""] * 5
    assert output.splitlines() == ["True"] * 30
    for text, _ in ended[1:]:
        assert int(text.split()[0]) >= (10 if bucket_from_rows > 1 else 1)
    compact_cache(open_storage(tmp_path), grace_seconds=0)
    assert list(verify_cache(open_storage(tmp_path))) == []
    assert is_compact(tmp_path)
    cache = open_cache(tmp_path)
    assert len(cache) == 3 * COMMITS
    assert {cache.row(f"shared-{n}").created_ns for n in range(COMMITS)} == {11}


@pytest.mark.slow
@either_way
def test_a_task_committed_again_while_compaction_merges_it_away_is_one_row(tmp_path):
    build(tmp_path, make_sample(seed=1).pending("w", key="b" * 64))
    video = make_sample().pending("v")
    with ThreadPoolExecutor(3) as pool:
        commits = pool.submit(
            lambda: [commit_videos(open_storage(tmp_path), [video]) for _ in range(150)]
        )
        while not commits.done():
            compact_cache(open_storage(tmp_path))
    assert {row.video_id for rows in commits.result() for row in rows} == {"v"}
    assert sorted(open_cache(tmp_path).ids()) == ["v", "w"]
