"""Caches written once and never again: this version must read what earlier ones wrote."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.verify import verify_cache
from tests.golden.make_golden import expectation

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.json").exists())


def test_there_is_a_golden_cache_of_every_kind():
    assert NAMES == [
        "bf16-fp8",
        "bf16-none",
        "bf16-none-buckets",
        "bf16-none-grid",
        "bf16-zstd",
        "f16-none",
        "f32-fp8",
        "f32-none",
        "f32-zstd",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_cache_reads_as_on_the_day_it_was_written(name):
    root = GOLDEN / name
    assert expectation(open_cache(root)) == json.loads((root / "expected.json").read_text())
    findings = list(verify_cache(open_storage(root)))
    assert [finding for finding in findings if finding.is_damage] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_cache_can_be_compacted(name, tmp_path):
    root = shutil.copytree(GOLDEN / name, tmp_path / name)
    compact_cache(open_storage(root), grace_seconds=0)
    assert expectation(open_cache(root)) == json.loads((root / "expected.json").read_text())


def test_golden_caches_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*")) < 2**20


def test_columns_that_came_later_are_null_in_a_golden_cache_and_may_be_asked_for(tmp_path):
    root = shutil.copytree(GOLDEN / "bf16-none", tmp_path / "cache")
    cache = open_cache(root)
    assert cache.row("a.mp4").video_stream is None
    assert cache.query("video_stream IS NULL AND num_rescaled_frames IS NULL").num_rows == 5
    compact_cache(open_storage(root), grace_seconds=0)
    assert open_cache(root).query("SELECT video_stream FROM index").num_rows == 5
