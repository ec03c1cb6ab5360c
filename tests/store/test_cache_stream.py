"""Loading many videos: reads overlap, order and memory are kept."""

import ctypes
import dataclasses
import mmap
import os
import threading
import time

import numpy as np
import pytest
import torch

from pipeline.cache import open_cache
from pipeline.store.ahead import map_ahead
from schemas.errors import ConfigError, ShardMissingError, VideoNotCachedError
from tests.store.sample_cache import build, failed_row, make_sample

IDS = [f"v{n}" for n in range(9)]


@pytest.fixture
def cache(tmp_path):
    for n, video_id in enumerate(IDS):
        build(tmp_path, make_sample(seed=n).pending(video_id, key=f"{n:064x}"))
    build(tmp_path, failed_row("bad"))
    return open_cache(tmp_path)


@pytest.mark.parametrize("asked", [{}, {"budget": 4}, {"threshold": 0.4}])
def test_many_videos_load_equal_to_one_by_one_in_the_order_asked(cache, asked):
    wanted = [*reversed(IDS), IDS[3], IDS[3]]
    videos = cache.load_many(wanted, **asked)
    assert [video.video_id for video in videos] == wanted
    for video in videos:
        assert torch.equal(video.features, cache.load(video.video_id, **asked).features)


def test_a_stream_without_ids_gives_every_loadable_video(cache):
    assert [video.video_id for video in cache.stream()] == IDS


def test_a_video_that_fails_is_raised_at_its_turn(cache, tmp_path):
    stream = cache.stream([IDS[0], IDS[1], "bad", IDS[2]])
    assert [next(stream).video_id, next(stream).video_id] == IDS[:2]
    with pytest.raises(VideoNotCachedError, match="truncated"):
        next(stream)
    assert next(stream, None) is None


def test_reads_go_on_at_the_same_time():
    together = threading.Barrier(3)
    found = map_ahead(lambda n: (together.wait(20), n)[1], range(6), 3, threads=3)
    assert list(found) == list(range(6))


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_no_more_is_begun_than_was_asked_for_ahead(ahead):
    begun = []

    def items():
        for n in range(50):
            begun.append(n)
            yield n

    stream = map_ahead(lambda n: n, items(), ahead, threads=2)
    for n in range(10):
        assert next(stream) == n
        assert len(begun) <= n + 1 + ahead
    stream.close()
    assert len(begun) <= 10 + ahead


def test_closing_a_stream_waits_for_what_is_under_way_and_begins_nothing_else():
    running = threading.Semaphore(0)
    ended = []

    def work(n):
        running.release()
        time.sleep(0.05)
        ended.append(n)
        return n

    stream = map_ahead(work, range(100), 4, threads=2)
    next(stream)
    running.acquire()
    stream.close()
    count = len(ended)
    assert 1 <= count <= 6
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead") and t.is_alive()]
    assert len(ended) == count


def resident_pages(path) -> int:
    """Pages of the file that are in the kernel's cache, asked of ``mincore``."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        assert libc.mincore(address, len(mapped), found) == 0
        return sum(byte & 1 for byte in found)


def test_prefetched_videos_come_into_the_kernels_cache(tmp_path):
    sample = make_sample(seed=1)
    tensors = {**sample.tensors, "features": sample.tensors["features"].repeat(1, 4096)}
    big = dataclasses.replace(sample, tensors=tensors, hidden_size=sample.hidden_size * 4096)
    build(tmp_path, big.pending("v"))
    (shard,) = (tmp_path / "shards").iterdir()
    with shard.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cache = open_cache(tmp_path)
    pages = shard.stat().st_size // mmap.PAGESIZE
    if resident_pages(shard) >= pages / 2:
        pytest.skip("the folder for tests lies in memory: the kernel drops no page of it")
    deadline = time.monotonic() + 60
    while resident_pages(shard) < pages / 2:  # the kernel may take the advice late, or in part
        assert time.monotonic() < deadline
        cache.prefetch(["v"])
        time.sleep(0.05)
    assert cache.load("v").num_tokens == 40


def test_prefetch_refuses_what_load_refuses_and_leaves_missing_shards_to_it(cache, tmp_path):
    with pytest.raises(VideoNotCachedError):
        cache.prefetch(["nothing"])
    with pytest.raises(ConfigError, match="budget"):
        cache.prefetch(["v1"], budget=-1)
    (tmp_path / "shards" / f"{cache.row('v1').shard}.safetensors").unlink()
    cache.prefetch(["v1"])
    with pytest.raises(ShardMissingError):
        cache.load("v1")
