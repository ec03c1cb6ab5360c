import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache import open_cache
from pipeline.store.reader import unfilled
from schemas.errors import (
    BudgetError,
    CacheNotFoundError,
    ChecksumError,
    ConfigError,
    QueryError,
    VideoNotCachedError,
)
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.store.sample_cache import MANIFEST, build, failed_row, make_sample, shard_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def sample():
    return make_sample()


@pytest.fixture
def cache(tmp_path, sample):
    build(
        tmp_path,
        sample.pending("a/b.mp4", codec="h264"),
        make_sample(seed=1).pending("a/c.mp4", key="b" * 64, codec="hevc"),
        failed_row("a/d.mp4"),
    )
    return open_cache(tmp_path)


def expected_prefix(sample, count):
    """What a prefix of ``count`` rows must load as, the slow way."""
    kept = sorted(range(count), key=lambda i: int(sample.tensors["prompt_index"][i]))
    dropped = set(sample.tensors["prompt_index"][count:].tolist())
    columns = [c for c in range(len(sample.tensors["input_ids"])) if c not in dropped]
    return kept, columns


@pytest.mark.parametrize("count", [1, 7, 20, 21, 39, 40])
def test_a_budget_loads_a_prefix_in_prompt_order_with_its_own_stretch(cache, sample, count):
    video = cache.load("a/b.mp4", budget=count)
    kept, columns = expected_prefix(sample, count)
    assert torch.equal(video.features, sample.tensors["features"][kept])
    assert video.input_ids.tolist() == sample.tensors["input_ids"][columns].tolist()
    assert video.position_ids.tolist() == sample.tensors["position_ids"][:, columns].tolist()
    at = [columns.index(int(sample.tensors["prompt_index"][i])) for i in kept]
    assert video.visual_index.tolist() == at
    assert at == sorted(at)
    places = [int(sample.tensors["grid_index"][i]) for i in kept]
    assert video.coordinates.tolist() == [[p // 20, p % 20 // 5, p % 5] for p in places]
    assert video.next_position == 1000
    assert (video.features.shape[0], video.input_ids.dtype) == (count, torch.int64)
    assert video.position_ids.dtype == video.coordinates.dtype == torch.int32


def test_a_fraction_counts_tokens_before_fusion_and_is_a_ceiling(cache):
    assert cache.load("a/b.mp4", budget=0.25).num_tokens == 15
    assert cache.load("a/b.mp4", budget=0.99).num_tokens == 40
    assert cache.load("a/b.mp4", budget=0.001).num_tokens == 1
    assert cache.load("a/b.mp4", budget=10**6).num_tokens == 40


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 0.2, 0.5, 0.7])
def test_a_threshold_loads_the_anchors_and_the_rows_up_to_it(cache, sample, threshold):
    video = cache.load("a/b.mp4", threshold=threshold)
    count = 20 + int((sample.tensors["score"][20:] <= threshold).sum())
    assert video.num_tokens == count
    assert torch.equal(video.features, cache.load("a/b.mp4", budget=count).features)


def test_a_threshold_keeps_a_token_whose_score_equals_it(cache, sample):
    score = sample.tensors["score"][30]
    assert cache.load("a/b.mp4", threshold=float(score)).num_tokens == 31


def test_a_threshold_above_the_build_is_refused_saying_which(cache):
    with pytest.raises(BudgetError, match=r"built with 0\.7\b"):
        cache.load("a/b.mp4", threshold=0.71)


@pytest.mark.parametrize("threshold", [float("nan"), "x", "0.5", True, [0.5]])
def test_a_threshold_that_is_not_a_number_is_refused_saying_so(cache, threshold):
    with pytest.raises(BudgetError, match=r"threshold=.* is not a number; give a cosine"):
        cache.load("a/b.mp4", threshold=threshold)


def test_a_threshold_may_be_a_number_of_numpy(cache):
    theirs = cache.load("a/b.mp4", threshold=np.float32(0.5))
    assert theirs.num_tokens == cache.load("a/b.mp4", threshold=0.5).num_tokens


@pytest.mark.parametrize("budget", ["x", "5", True, [5]])
def test_a_budget_that_is_not_a_number_is_refused_saying_so(cache, budget):
    with pytest.raises(ConfigError, match=r"budget.*a whole number of tokens or a fraction"):
        cache.load("a/b.mp4", budget=budget)


def test_a_cache_built_with_a_budget_serves_thresholds_below_its_last_score(tmp_path, sample):
    manifest = replace(MANIFEST, fusion=FusionConfig(budget=40))
    build(tmp_path, sample.pending("v", fingerprint=manifest.fingerprint), manifest=manifest)
    cache = open_cache(tmp_path)
    last = float(sample.tensors["score"][-1])
    assert cache.load("v", threshold=last - 1e-3).num_tokens <= 39
    with pytest.raises(BudgetError, match="beyond the budget 40 of this cache"):
        cache.load("v", threshold=last)


def test_methods_that_are_not_nested_refuse_budgets_and_thresholds(tmp_path, sample):
    manifest = replace(MANIFEST, fusion=FusionConfig(method="uniform", budget=0.5))
    build(
        tmp_path,
        sample.pending("v", nested=False, fingerprint=manifest.fingerprint),
        manifest=manifest,
    )
    cache = open_cache(tmp_path)
    assert cache.load("v").num_tokens == 40
    with pytest.raises(BudgetError, match="'uniform' are in grid order"):
        cache.load("v", budget=5)
    with pytest.raises(BudgetError, match="'uniform' are not stored in the order of a threshold"):
        cache.load("v", threshold=0.5)


def test_budget_and_threshold_together_are_refused(cache):
    with pytest.raises(BudgetError, match="give one"):
        cache.load("a/b.mp4", budget=5, threshold=0.5)


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5])
def test_a_budget_out_of_range_is_refused(cache, budget):
    with pytest.raises(ConfigError):
        cache.load("a/b.mp4", budget=budget)


def test_a_prefix_is_read_and_verified_without_the_bytes_behind_it(tmp_path):
    sample = make_sample(grid=TokenGrid(4, 16, 16), num_rows=1000, hidden_size=512)
    (row,) = build(tmp_path, sample.pending("v"))
    begin = row.offset + row.layout.head_bytes + 250 * 512 * 3 * 2
    with shard_of(tmp_path).open("r+b") as shard:
        size = shard.seek(0, os.SEEK_END)
        shard.truncate(begin)
        shard.truncate(size)
    cache = open_cache(tmp_path)
    video = cache.load("v", budget=250)
    kept, _ = expected_prefix(sample, 250)
    assert torch.equal(video.features, sample.tensors["features"][kept])
    assert video.bytes_read == begin - row.offset
    with pytest.raises(ChecksumError, match="feature row 250"):
        cache.load("v")


def test_out_receives_the_features_and_is_used_again_for_shorter_loads(cache, sample):
    out = torch.full((50, 24), 7.0, dtype=torch.bfloat16)
    video = cache.load("a/b.mp4", out=out)
    assert video.features.data_ptr() == out.data_ptr()
    assert torch.equal(video.features, sample.tensors["features"][sample.prompt_order])
    assert (out[40:] == 7).all()
    assert cache.load("a/b.mp4", budget=3, out=out).features.shape == (3, 24)


@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(39, 24, dtype=torch.bfloat16),
        torch.zeros(40, 25, dtype=torch.bfloat16),
        torch.zeros(40, 24),
        torch.zeros(24, 40, dtype=torch.bfloat16).t(),
        torch.zeros(40, 24, dtype=torch.bfloat16, device="meta"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(cache, out):
    with pytest.raises(ConfigError, match="at least 40 x 24"):
        cache.load("a/b.mp4", out=out)


def test_large_videos_survive_the_cache_and_each_other(tmp_path):
    sample = make_sample(grid=TokenGrid(4, 32, 32), num_rows=3000, hidden_size=512)
    build(tmp_path, sample.pending("v"))
    cache = open_cache(tmp_path)
    expected = sample.tensors["features"][sample.prompt_order]
    videos = [cache.load("v") for _ in range(3)]
    videos[0].features.zero_()
    del cache
    assert torch.equal(videos[1].features, expected)
    assert torch.equal(videos[2].features, expected)


def test_memory_of_a_dropped_video_is_used_again_and_never_while_a_view_lives(tmp_path):
    sample = make_sample(grid=TokenGrid(4, 32, 32), num_rows=3000, hidden_size=512)
    build(tmp_path, sample.pending("v"))
    cache = open_cache(tmp_path)
    expected = sample.tensors["features"][sample.prompt_order]
    view = cache.load("v").features[5:]
    other = cache.load("v")
    assert torch.equal(view, expected[5:])
    place = other.features.data_ptr()
    assert place != view.data_ptr() - 5 * view.shape[1] * 2
    del other
    again = cache.load("v")
    assert again.features.data_ptr() == place
    again.features.zero_()
    assert torch.equal(view, expected[5:])


def test_a_cache_crosses_to_another_process_by_pickle(cache):
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.load("a/b.mp4").features, cache.load("a/b.mp4").features)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_what_a_short_read_left_is_read_next(sizes, data):
    total = sum(sizes)
    count = data.draw(st.integers(1, total))
    block = bytearray(total)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    buffers = [memoryview(block)[a : a + n] for a, n in zip(starts, sizes, strict=True)]
    rest = unfilled(buffers, count)
    assert sum(map(len, rest)) == total - count
    for buffer in rest:
        buffer[:] = b"x" * len(buffer)
    assert bytes(block) == bytes(count) + b"x" * (total - count)


def test_the_cache_counts_and_lists_loadable_videos_only(cache):
    assert len(cache) == 2
    assert list(cache.ids()) == ["a/b.mp4", "a/c.mp4"]
    assert "a/b.mp4" in cache
    assert "a/d.mp4" not in cache
    assert 5 not in cache
    assert cache.index["video_id"].to_pylist() == ["a/b.mp4", "a/c.mp4", "a/d.mp4"]
    assert cache.failed()["video_id"].to_pylist() == ["a/d.mp4"]
    assert cache.row("a/d.mp4").error_kind == "truncated"


def test_an_unknown_id_is_answered_with_near_ones(cache):
    with pytest.raises(VideoNotCachedError, match=r"did you mean 'a/b\.mp4'"):
        cache.load("a/bb.mp4")
    with pytest.raises(KeyError):
        cache.load("zzz")


def test_a_failed_video_is_refused_with_its_kind_and_message(cache):
    with pytest.raises(VideoNotCachedError, match="truncated: the file ends after 3 of 90 frames"):
        cache.load("a/d.mp4")


def test_a_folder_without_a_cache_is_not_found(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CacheNotFoundError):
            open_cache(place)


def test_reprs_show_shapes_and_no_numbers(cache):
    text = repr(cache.load("a/b.mp4"))
    assert "features=(40, 24) torch.bfloat16 on cpu" in text
    assert "tensor(" not in text
    assert repr(cache).endswith("videos=2, failed=1)")


def test_selections_differ_by_budget_and_by_content(cache):
    selections = {
        cache.load("a/b.mp4").selection,
        cache.load("a/b.mp4", budget=3).selection,
        cache.load("a/c.mp4").selection,
    }
    assert len(selections) == 3
    assert cache.load("a/b.mp4", budget=40).selection == cache.load("a/b.mp4").selection


def test_a_video_moves_to_a_device_with_all_its_tensors(cache):
    video = cache.load("a/b.mp4", device="meta")
    tensors = [video.features, video.coordinates, video.input_ids, video.visual_index, video.match]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_condition_or_a_select_queries_the_index(cache):
    assert cache.query("codec = 'hevc'")["video_id"].to_pylist() == ["a/c.mp4"]
    assert cache.query("status = 'failed' OR codec = 'h264' ORDER BY video_id DESC").num_rows == 2
    counted = cache.query("SELECT status, count(*) AS n FROM index GROUP BY status ORDER BY n")
    assert counted.to_pylist() == [{"status": "failed", "n": 1}, {"status": "ok", "n": 2}]
    with_clause = "WITH kept AS (FROM index WHERE status = 'ok') SELECT count(*) AS n FROM kept"
    assert cache.query(with_clause)["n"].to_pylist() == [2]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("keep_ratoi < 0.4", "keep_ratio"),
        ("codec = ", "syntax error"),
        ("", "the query is empty"),
        ("SELECT 1; SELECT 2", "expected one SELECT"),
        ("1 = 1; DROP VIEW index", "expected one SELECT"),
        ("SELECT * FROM read_text('/etc/hostname')", "disabled by configuration"),
        ("SELECT * FROM '/etc/hostname'", "does not exist"),
        ("SELECT * FROM glob('/*')", "disabled by configuration"),
    ],
)
def test_a_query_that_fails_says_why_in_one_line(cache, sql, message):
    with pytest.raises(QueryError, match=message) as error:
        cache.query(sql)
    assert "\n" not in str(error.value)


def test_a_query_cannot_write_a_file(cache, tmp_path):
    target = tmp_path / "stolen.csv"
    with pytest.raises(QueryError):
        cache.query(f"1=1; COPY (SELECT 1) TO '{target}'")
    assert not target.exists()


def test_opening_listing_and_querying_never_import_torch(cache):
    script = (
        "import sys\n"
        "from pipeline.cache import open_cache\n"
        "from pipeline.storage import open_storage\n"
        "from pipeline.store.verify import verify_cache\n"
        "import pathlib\n"
        "cache = open_cache(sys.argv[1])\n"
        "assert list(cache.ids()) and cache.query('keep_ratio < 1').num_rows == 2\n"
        "assert not list(verify_cache(open_storage(pathlib.Path(sys.argv[1]))))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, cache.storage.location],
        check=True,
        cwd=REPOSITORY,
        timeout=240,
    )


WRONG_DEVICES = [
    *("bogus", "", "cuda:-1", "cuda:99", "cpu:x", "fpga", "hpu", "privateuseone", "lazy"),
    *(None, -1, True, 3.5, ["cpu"]),
]


@pytest.mark.parametrize("device", WRONG_DEVICES, ids=repr)
def test_a_device_that_is_not_there_is_refused_in_one_line(cache, device):
    for load in (cache.load, lambda name, **options: cache.load_many([name], **options)):
        with pytest.raises(ConfigError, match=r"^device ") as caught:
            load("a/b.mp4", device=device)
        assert "\n" not in str(caught.value)


def test_ids_that_are_no_text_and_a_text_for_many_ids_are_refused(cache):
    for video_id in (None, 5, b"a/b.mp4"):
        with pytest.raises(VideoNotCachedError, match="ids are text"):
            cache.load(video_id)
    for many in (cache.load_many, cache.prefetch, lambda ids: list(cache.stream(ids))):
        with pytest.raises(ConfigError, match="give a list of ids"):
            many("a/b.mp4")
