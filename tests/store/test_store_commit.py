"""Commits by real processes that race, are killed, or run out of disk."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.commit import commit_videos
from pipeline.store.manifest import create_or_check
from pipeline.store.verify import verify_cache
from schemas.errors import CacheError, CacheMismatchError
from schemas.fusion import FusionConfig
from tests.store.sample_cache import (
    MANIFEST,
    build,
    failed_row,
    fragment_of,
    make_sample,
    shard_of,
)

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import os, resource, signal, sys
from pathlib import Path
from tests.store.sample_cache import build, make_sample
root, mode, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
entries = [make_sample(seed=n).pending(str(n), key=str(n) * 64, writer=mode) for n in (1, 2)]
if mode == "race":
    print("ready", flush=True)
    sys.stdin.readline()
    build(root, *entries)
if mode == "kill":  # fork once for each point at which the commit touches the cache folder
    for point in range(number):
        child = os.fork()
        if not child:
            seen = 0
            def audit(event, args):
                global seen
                touches = event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir")
                if touches and str(root) in str(args[0]):
                    seen += 1
                    if seen > point:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(audit)
            build(root / str(point), *entries)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(os.WIFSIGNALED(status), flush=True)
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    build(root, make_sample(num_rows=21).pending("new"))
"""


def start(root: Path, mode: str, number: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), mode, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


@pytest.mark.slow
def test_two_processes_that_commit_the_same_task_leave_one_copy(tmp_path):
    racers = [start(tmp_path, "race") for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=240)[1] for racer in racers] == ["", ""]
    assert shard_of(tmp_path)
    assert fragment_of(tmp_path)
    assert list(open_cache(tmp_path).ids()) == ["1", "2"]
    assert list(verify_cache(open_storage(tmp_path))) == []


@pytest.mark.slow
def test_a_process_killed_at_any_point_leaves_all_rows_or_none(tmp_path):
    points = 24
    output, errors = start(tmp_path, "kill", points).communicate(timeout=240)
    assert errors == ""
    killed = [line == "True" for line in output.splitlines()]
    assert killed == sorted(killed, reverse=True)
    assert 8 < sum(killed) < points
    counts = []
    for point in range(sum(killed)):
        root = tmp_path / str(point)
        if not (root / "manifest.json").exists():
            continue
        cache = open_cache(root)
        counts.append(len(cache))
        kinds = {finding.kind for finding in verify_cache(open_storage(root))}
        assert kinds <= {"orphan_shard", "temporary_file"}
        build(root, *[make_sample(seed=n).pending(str(n), key=str(n) * 64) for n in (1, 2)])
        assert len(open_cache(root)) == 2
        assert not any(finding.is_damage for finding in verify_cache(open_storage(root)))
    assert set(counts) == {0, 2}


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "debris"), [(3000, set()), (8500, {"orphan_shard"})])
def test_a_disk_that_is_full_leaves_the_old_cache_and_nothing_half_written(tmp_path, limit, debris):
    build(tmp_path, make_sample().pending("old"))
    files = {path for path in tmp_path.rglob("*") if path.suffix != ".safetensors"}
    process = start(tmp_path, "full", limit)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "what the cache held is untouched" in errors
    assert "File too large" in errors
    assert {p for p in tmp_path.rglob("*") if p.suffix != ".safetensors"} == files
    cache = open_cache(tmp_path)
    assert list(cache.ids()) == ["old"]
    cache.load("old")
    assert {finding.kind for finding in verify_cache(open_storage(tmp_path))} == debris


def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(tmp_path):
    (tmp_path / "shards").write_bytes(b"a file where a folder belongs")
    create_or_check(open_storage(tmp_path), MANIFEST)
    with pytest.raises(CacheError, match=f"cannot write {tmp_path}/shards/"):
        commit_videos(open_storage(tmp_path), [make_sample().pending("v")])


def test_committing_again_returns_the_rows_of_the_first_commit(tmp_path):
    first = build(tmp_path, make_sample().pending("v", created_ns=1), failed_row("w"))
    second = build(tmp_path, make_sample().pending("v", created_ns=2), failed_row("w"))
    assert second == first
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_a_failure_tried_again_is_a_commit_of_its_own(tmp_path):
    build(tmp_path, failed_row("w", attempts=1, created_ns=1))
    build(tmp_path, failed_row("w", attempts=2, created_ns=2))
    assert len(list((tmp_path / "index").iterdir())) == 2
    assert open_cache(tmp_path).row("w").attempts == 2


def test_rows_come_back_in_the_order_given_and_nothing_gives_nothing(tmp_path):
    rows = build(tmp_path, failed_row("z"), make_sample().pending("m"), failed_row("a"))
    assert [row.video_id for row in rows] == ["z", "m", "a"]
    assert [row.status for row in rows] == ["failed", "ok", "failed"]
    assert commit_videos(open_storage(tmp_path), []) == []


def test_a_committed_row_reads_back_equal(tmp_path):
    (row,) = build(tmp_path, make_sample().pending("v", extra={"split": "train", "n": 3}))
    assert open_cache(tmp_path).row("v") == row


def test_a_further_column_with_a_name_of_the_index_is_refused(tmp_path):
    with pytest.raises(CacheError, match=r"\['shard'\] have names of the index"):
        build(tmp_path, make_sample().pending("v", extra={"shard": "mine"}))
    assert not list((tmp_path / "index").glob("*"))


def test_fields_that_contradict_the_record_are_refused_and_nothing_is_visible(tmp_path):
    with pytest.raises(CacheError, match="the row says 39"):
        build(tmp_path, make_sample().pending("v", tokens_after=39))
    assert len(open_cache(tmp_path)) == 0


def test_fragments_are_plain_parquet_to_pandas_and_duckdb(tmp_path):
    import duckdb

    build(tmp_path, make_sample().pending("v"), failed_row("w"))
    frame = pd.read_parquet(fragment_of(tmp_path))
    assert frame["video_id"].tolist() == ["v", "w"]
    pattern = str(tmp_path / "index" / "*.parquet")
    found = duckdb.connect().execute(f"SELECT tokens_after FROM '{pattern}' WHERE status = 'ok'")
    assert found.fetchall() == [(40,)]


def test_another_configuration_is_refused_naming_each_field(tmp_path):
    create_or_check(open_storage(tmp_path), MANIFEST)
    before = (tmp_path / "manifest.json").read_bytes()
    other = replace(
        MANIFEST,
        fusion=FusionConfig(threshold=0.5, window=5),
        encoder=replace(MANIFEST.encoder, weights_digest="9" * 64),
    )
    with pytest.raises(CacheMismatchError) as error:
        create_or_check(open_storage(tmp_path), other)
    for name in ("fusion.threshold", "fusion.window", "encoder.weights_digest"):
        assert name in str(error.value)
    assert "fusion.method" not in str(error.value)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_what_a_manifest_says_about_itself_is_not_compared(tmp_path):
    create_or_check(open_storage(tmp_path), replace(MANIFEST, about={"host": "one"}))
    kept = create_or_check(open_storage(tmp_path), replace(MANIFEST, about={"host": "two"}))
    assert kept.about == {"host": "one"}
    assert json.loads((tmp_path / "manifest.json").read_text())["about"] == {"host": "one"}
