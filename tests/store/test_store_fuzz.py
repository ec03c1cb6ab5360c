"""Whatever is done to the files of a cache: the tensors committed, or a TokenreelError."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cache import open_cache
from pipeline.store.commit import PendingVideo
from pipeline.store.record import encode_record
from schemas.errors import CacheCorruptError
from schemas.grid import TokenGrid
from tests.store.fuzz_cases import FAMILIES
from tests.store.fuzz_child import difference
from tests.store.sample_cache import build, make_sample, shard_of
from tests.synthetic import REPOSITORY

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc"
)

FAST_SEEDS = range(9)
SLOW_SEEDS = [range(9, 27), *(range(first, first + 30) for first in range(100, 250, 30))]


def cases(seeds) -> list[str]:
    return [f"{family}:{seed}" for seed in seeds for family in FAMILIES]


def read_corrupted(folder: Path, named: list[str]) -> list[dict]:
    """What a child process says of each case; fails naming every case that went wrong."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.store.fuzz_child", str(folder), *named],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    notes = {line["case"]: line["note"] for line in lines if "note" in line}
    results = [line for line in lines if "wrong" in line]
    failures = [
        f"{line['case']} ({notes[line['case']]}) {problem}"
        for line in results
        for problem in line["wrong"]
    ]
    if child.returncode or len(results) != len(named):
        last = next((case for case in reversed(notes)), "before the first case")
        failures.append(
            f"{last} ({notes.get(last)}) ended the reader with {child.returncode}:\n"
            f"{child.stderr[-3000:]}"
        )
    again = "reproduce with: python -m tests.store.fuzz_child FOLDER CASE"
    assert not failures, "\n".join([again, *failures])
    return results


def ends(seeds) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


@pytest.mark.slow
@needs_proc
def test_a_corrupted_cache_gives_what_was_committed_or_an_error_of_ours(tmp_path):
    results = read_corrupted(tmp_path, cases(FAST_SEEDS))
    found = [line for line in results if line["outcomes"]]
    assert len(results) >= 100
    assert len(found) > len(results) / 2, "most corruptions must matter to be worth the while"
    kinds = {outcome for line in results for outcome in line["outcomes"]}
    assert {"ChecksumError", "IndexCorruptError", "damaged_video", "damaged_shard"} <= kinds


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("seeds", SLOW_SEEDS, ids=ends)
def test_many_more_corruptions_give_the_same_or_an_error_of_ours(tmp_path, seeds):
    assert len(read_corrupted(tmp_path, cases(seeds))) >= 100


@pytest.mark.slow
@needs_proc
def test_a_reader_that_dies_or_hangs_would_be_named(tmp_path):
    with pytest.raises(AssertionError, match=r"bytes:1 .* ended the reader with 1:"):
        read_corrupted(tmp_path, ["bytes:1", "no such family:7"])


@pytest.fixture(params=["none", "zstd", "fp8"])
def small_video(request, tmp_path):
    """A video of few bytes, its row and the encoding of its rows."""
    sample = make_sample(
        grid=TokenGrid(2, 2, 2), num_rows=7, hidden_size=2, num_deepstack=1, text_columns=2
    )
    record = encode_record(sample.record("a" * 64), request.param, num_layers=2)
    (row,) = build(tmp_path, PendingVideo(sample.fields("v"), record))
    return row


def load_error(cache, good):
    """Why the video cannot be loaded; None where it can, which must give what was committed."""
    try:
        assert difference(cache.load("v"), good) is None
    except CacheCorruptError as error:
        return error
    return None


def test_any_flipped_bit_of_a_video_is_found_when_it_is_loaded(tmp_path, small_video):
    row, cache = small_video, open_cache(tmp_path)
    good = cache.load("v")
    features = row.layout["features"]
    with shard_of(tmp_path).open("r+b", buffering=0) as shard:
        shard.seek(row.offset)
        data = shard.read(row.num_bytes)
        for place, byte in enumerate(data):
            bits = range(8) if place >= features.offset else [place % 8]
            for bit in bits:
                shard.seek(row.offset + place)
                shard.write(bytes([byte ^ 1 << bit]))
                error = load_error(cache, good)
                if error is None and place >= features.offset and row.encoding == "zstd":
                    continue  # a bit that zstd does not look at changes no feature
                assert isinstance(error, CacheCorruptError), (place, bit, error)
            shard.seek(row.offset + place)
            shard.write(bytes([byte]))
    assert difference(cache.load("v"), good) is None


def test_two_videos_that_differ_in_one_bit_are_told_apart(tmp_path):
    build(tmp_path, make_sample().pending("v"))
    good, other = open_cache(tmp_path).load("v"), open_cache(tmp_path).load("v")
    other.features.view(torch.int16)[3, 5] ^= 1
    assert difference(other, good) == "features"
