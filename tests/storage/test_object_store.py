"""Caches in an object store, against a real S3 server on loopback."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.storage.prefetched import PrefetchedRanges
from pipeline.store.commit import commit_videos
from pipeline.store.compact import compact_cache
from pipeline.store.index import read_index
from pipeline.store.manifest import create_or_check
from pipeline.store.shard import write_shard
from pipeline.store.verify import verify_cache
from schemas.config import SamplingConfig
from schemas.errors import (
    BoundsError,
    CacheError,
    CacheMismatchError,
    CacheNotFoundError,
    CacheUnreachableError,
    ChecksumError,
    ConfigError,
    IndexCorruptError,
    ShardMissingError,
)
from tests.store.sample_cache import MANIFEST, make_sample

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def place(bucket):
    return f"{bucket.url}/some/cache"


@pytest.fixture
def sample():
    return make_sample(seed=3)


def build(location, *entries):
    storage = open_storage(location)
    create_or_check(storage, MANIFEST)
    return commit_videos(storage, list(entries))


def gets_of_shards(bucket):
    return [line for line in bucket.requests() if line.startswith("GET") and "/shards/" in line]


def test_what_is_loaded_equals_what_a_folder_gives(place, sample, tmp_path):
    for location in (place, tmp_path):
        build(location, sample.pending("a/b.mp4"), make_sample(seed=4).pending("c", key="b" * 64))
    remote, local = open_cache(place), open_cache(tmp_path)
    assert list(remote.ids()) == list(local.ids()) == ["a/b.mp4", "c"]
    for video_id in local.ids():
        for asked in ({}, {"budget": 3}, {"budget": 0.5}, {"threshold": 0.3}):
            one, other = remote.load(video_id, **asked), local.load(video_id, **asked)
            assert torch.equal(one.features, other.features)
            assert torch.equal(one.position_ids, other.position_ids)
            assert one.bytes_read == other.bytes_read
    assert remote.query("num_bytes > 0").num_rows == 2


@pytest.mark.parametrize("budget", [None, 5, 0.25])
def test_a_load_is_one_range_request_of_just_its_bytes(bucket, place, sample, budget):
    (row,) = build(place, sample.pending("v"))
    cache = open_cache(place)
    before = len(bucket.requests())
    video = cache.load("v", budget=budget)
    (request,) = bucket.requests()[before:]
    first = row.offset
    assert request.endswith(f"bytes={first}-{first + video.bytes_read - 1}")
    full = row.layout.num_bytes - row.layout.head_bytes
    rows = video.num_tokens / sample.tensors["features"].shape[0]
    assert video.bytes_read == row.layout.head_bytes + round(full * rows)


def test_a_threshold_takes_two_requests_for_its_scores_decide(bucket, place, sample):
    build(place, sample.pending("v"))
    cache = open_cache(place)
    cache.load("v", threshold=0.3)
    assert len(gets_of_shards(bucket)) == 2


def test_of_many_writers_that_create_one_name_one_wins(bucket):
    storage = open_storage(bucket.url)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.create("index/a", [b"%d" % n]), range(8)))
    assert sum(won) == 1
    assert storage.open_input("index/a").read() == b"%d" % won.index(True)


def test_committing_again_returns_the_rows_of_the_first_commit(place, sample):
    first = build(place, sample.pending("v", created_ns=1))
    assert build(place, sample.pending("v", created_ns=2)) == first


def test_requests_that_fail_are_tried_again(bucket, place, sample):
    bucket.fail_next(2)
    build(place, sample.pending("v"))
    bucket.fail_next(3)
    assert open_cache(place).load("v").num_tokens == 40


def test_another_configuration_is_refused(place):
    build(place)
    with pytest.raises(CacheMismatchError, match="fps"):
        create_or_check(open_storage(place), replace(MANIFEST, sampling=SamplingConfig(fps=1.0)))


def test_a_prefix_without_a_cache_a_bucket_that_is_not_there_and_other_urls_are_refused(bucket):
    with pytest.raises(CacheNotFoundError):
        open_cache(f"{bucket.url}/nothing")
    with pytest.raises(CacheError, match="no cache at s3://no-such-bucket"):
        open_cache("s3://no-such-bucket-at-all/cache")
    with pytest.raises(ConfigError, match="names no bucket"):
        open_cache("s3://")
    with pytest.raises(ConfigError, match="hdfs"):
        open_cache("hdfs://node/cache")


def test_a_server_that_is_not_there_is_one_clear_error(monkeypatch, bucket):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.storage.client.MAX_RETRIES", 1)
    with pytest.raises(CacheError, match="credentials, region and endpoint"):
        open_cache(f"{bucket.url}/cache")


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("s3://bucket/cache", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"),
        ("gs://bucket/cache", "Set GOOGLE_APPLICATION_CREDENTIALS to"),
    ],
)
def test_without_credentials_the_error_says_how_to_give_them(nowhere, url, cure):
    with pytest.raises(CacheError, match=cure) as found:
        open_storage(url).files("")
    assert "no credentials in the environment" in str(found.value)
    assert "http" not in str(found.value)


def test_a_profile_that_does_not_exist_is_one_clear_error(monkeypatch, nowhere):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(ConfigError, match=r"\(no-such-profile\).*AWS_PROFILE to a profile of"):
        open_storage("s3://bucket/cache")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Neither credentials nor a machine with a role."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, "127.0.0.1:9")
    monkeypatch.setattr("pipeline.storage.client.MAX_RETRIES", 0)


def shard_name(place):
    (file,) = open_storage(place).files("shards")
    return f"shards/{file.name}"


def test_a_shard_that_is_gone_or_cut_or_changed_is_named(place, sample):
    build(place, sample.pending("v"))
    cache, storage = open_cache(place), open_storage(place)
    name = shard_name(place)
    data = bytes(storage.open_input(name).read())
    storage.replace(name, [data[:-10]])
    with pytest.raises(BoundsError, match=r"s3://.*some/cache/shards"):
        cache.load("v")
    storage.replace(name, [data[:4000]])
    with pytest.raises(BoundsError):
        cache.load("v", budget=1)
    storage.replace(name, [data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]])
    with pytest.raises(ChecksumError):
        cache.load("v")
    assert [f.kind for f in verify_cache(storage)] == ["damaged_video"]
    storage.remove(name)
    with pytest.raises(ShardMissingError, match="there is no such object"):
        cache.load("v")


def test_a_fragment_that_is_no_parquet_is_named(place, sample):
    build(place, sample.pending("v"))
    (file,) = open_storage(place).files("index")
    open_storage(place).replace(f"index/{file.name}", [b"no parquet"])
    with pytest.raises(IndexCorruptError, match=r"s3://.*index"):
        open_cache(place)


def test_equal_content_written_twice_has_two_names_so_that_none_is_swept_by_mistake(place, sample):
    storage = open_storage(place)
    one, other = (write_shard(storage, [sample.record("a" * 64)]) for _ in range(2))
    assert one.name != other.name


def test_compaction_merges_fragments_and_sweeps_what_no_row_refers_to(place):
    for seed in range(4):
        build(place, make_sample(seed=seed).pending(f"v{seed}", key=f"{seed:064x}"))
    storage = open_storage(place)
    write_shard(storage, [make_sample(seed=9).record("9" * 64)])
    table = open_cache(place).index
    assert compact_cache(storage).shards_waiting == 1
    report = compact_cache(storage, grace_seconds=0)
    assert (report.shards_swept, report.fragments_after) == (1, 1)
    assert open_cache(place).index.equals(table)
    assert list(verify_cache(storage)) == []


def test_the_shard_of_a_dropped_row_is_young_again_for_readers_that_hold_it(place):
    build(place, make_sample(seed=1).pending("v", created_ns=1))
    build(place, make_sample(seed=2).pending("v", created_ns=2, content_sha256="d" * 64))
    storage = open_storage(place)
    ages = {file.name: file.modified_ns for file in storage.files("shards")}
    assert compact_cache(storage).shards_waiting == 1
    touched = [f for f in storage.files("shards") if f.modified_ns > ages[f.name]]
    assert len(touched) <= 1  # the server tells whole seconds
    assert {file.name for file in storage.files("shards")} == set(ages)
    assert compact_cache(storage, grace_seconds=0).shards_swept == 1
    assert list(verify_cache(storage)) == []


@pytest.mark.slow
def test_a_cache_crosses_to_another_process_by_its_url(place, sample):
    build(place, sample.pending("v"))
    script = (
        "import sys, pickle\n"
        "cache = pickle.load(sys.stdin.buffer)\n"
        "print(cache.load('v').num_tokens)\n"
    )
    import pickle

    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(open_cache(place)),
        capture_output=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout == b"40\n"


@pytest.mark.parametrize("budget", [None, 5])
def test_what_was_prefetched_is_loaded_without_another_request(bucket, place, budget):
    ids = [f"v{n}" for n in range(5)]
    build(place, *(make_sample(seed=n).pending(ids[n], key=f"{n:064x}") for n in range(5)))
    cache = open_cache(place)
    cache.prefetch(ids, budget=budget)
    videos = cache.load_many(ids, budget=budget)
    assert len(gets_of_shards(bucket)) == 5
    cache.load(ids[0], budget=budget)
    assert len(gets_of_shards(bucket)) == 6
    for video in videos:
        again = cache.load(video.video_id, budget=budget)
        assert torch.equal(video.features, again.features)


def test_a_prefetch_that_fails_is_the_error_of_the_load(place, sample):
    build(place, sample.pending("v"))
    cache = open_cache(place)
    open_storage(place).remove(shard_name(place))
    cache.prefetch(["v"])
    with pytest.raises(ShardMissingError):
        cache.load("v")


def test_ranges_beyond_the_room_for_prefetching_are_fetched_when_they_are_read():
    ranges = PrefetchedRanges(max_bytes=100)
    ranges.start(("a", 0, 60), lambda: memoryview(bytes(60)))
    ranges.start(("b", 0, 60), lambda: memoryview(bytes(60)))
    assert ranges.take(("b", 0, 60)) is None
    assert len(ranges.take(("a", 0, 60))) == 60
    assert ranges.take(("a", 0, 60)) is None
    ranges.start(("b", 0, 60), lambda: memoryview(bytes(60)))
    assert len(ranges.take(("b", 0, 60))) == 60


def test_an_outage_is_no_damage_and_nothing_is_discarded(monkeypatch, place, sample):
    build(place, sample.pending("v"))
    storage = open_storage(place)
    cache = open_cache(place)
    monkeypatch.setattr("pipeline.storage.client.MAX_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = open_storage(place)
    with pytest.raises(CacheUnreachableError, match="cannot be read now"):
        replace(cache, storage=away).load("v")
    found = CliRunner().invoke(cli, ["verify", place, "--discard"])
    assert found.exit_code == 1
    assert [row["status"] for row in read_index(storage).to_pylist()] == ["ok"]


@pytest.mark.parametrize("url", ["s3://b/my#cache", "s3://b/run?1", "s3://b/a%20b"])
def test_a_url_that_the_client_would_read_otherwise_is_refused(bucket, url):
    with pytest.raises(ConfigError, match="which no prefix of a cache may"):
        open_storage(url)


def test_a_url_given_as_a_path_is_refused_for_it_has_lost_a_slash(bucket):
    with pytest.raises(ConfigError, match="give the URL as text"):
        open_storage(Path("s3://bucket/cache"))


def test_a_cache_opened_before_a_fork_says_so_instead_of_hanging(place, sample):
    build(place, sample.pending("v"))
    cache = open_cache(place)
    script = (
        "import os, sys\n"
        "from pipeline.cache import open_cache\n"
        "from schemas.errors import CacheError\n"
        "cache = open_cache(sys.argv[1])\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        cache.load('v')\n"
        "    except CacheError as error:\n"
        "        os._exit(7 if 'forked' in str(error) else 1)\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, place], cwd=REPOSITORY, timeout=240)
    assert done.returncode == 7
    assert cache.load("v").num_tokens == 40


def test_a_prefetch_that_failed_is_tried_again_by_the_load(bucket, place, sample):
    build(place, sample.pending("v"))
    cache, storage = open_cache(place), open_storage(place)
    name = shard_name(place)
    data = bytes(storage.open_input(name).read())
    storage.remove(name)
    cache.prefetch(["v"])
    while not any("GET" in line and "/shards/" in line for line in bucket.requests()[-3:]):
        pass
    storage.replace(name, [data])
    assert cache.load("v").num_tokens == 40
