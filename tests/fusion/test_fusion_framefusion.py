"""FrameFusion's first step against plain loops in float64, written from the rules alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import DTYPES, ROUNDING, seeded

CONFIG = FusionConfig(method="framefusion")
CASES = settings(max_examples=50, deadline=None)


def video(grid, num_channels, *, dtype=torch.float32, seed=0):
    """Cells that change more or less from frame to frame."""
    generator = seeded(seed)
    shape = (grid.frames, grid.tokens_per_frame, num_channels)
    amount = 1.6 * torch.rand(grid.frames, grid.tokens_per_frame, 1, generator=generator)
    background = torch.randn(1, *shape[1:], generator=generator)
    change = torch.randn(shape, generator=generator)
    return (background + amount * change).flatten(0, 1).to(dtype)


def similarities(tokens, grid):
    values = tokens.double().numpy().reshape(grid.frames, grid.tokens_per_frame, -1)
    found = np.full(values.shape[:2], -np.inf)
    for t in range(1, grid.frames):
        for n in range(grid.tokens_per_frame):
            now, then = values[t, n], values[t - 1, n]
            found[t, n] = now @ then / (np.linalg.norm(now) * np.linalg.norm(then))
    return found


def merge(merged, tokens, grid):
    """Groups and their means, cell by cell, following the frames."""
    per_frame = grid.tokens_per_frame
    values = tokens.double().numpy()
    groups = {}
    for n in range(per_frame):
        head = None
        for t in range(grid.frames):
            index = t * per_frame + n
            if not merged[t, n]:
                head = index
                groups[head] = []
            groups[head].append(index)
    match = np.empty(grid.num_tokens, dtype=np.int64)
    for head, members in groups.items():
        match[members] = head
    kept = sorted(groups)
    rows = np.stack([sum(values[i] for i in groups[head]) / len(groups[head]) for head in kept])
    return kept, match, torch.from_numpy(rows)


def check(plan, merged, similarity, tokens, grid):
    kept, match, rows = merge(merged, tokens, grid)
    assert plan.keep_index.tolist() == kept
    assert plan.match_index.tolist() == match.tolist()
    assert plan.storage_index.tolist() == kept
    assert torch.equal(plan.apply(tokens), rows.to(tokens.dtype))
    np.testing.assert_allclose(plan.score.numpy(), similarity.ravel()[kept], rtol=0, atol=1e-6)


def random_cases(count):
    random = np.random.default_rng(11)
    for number in range(count):
        frames = int(random.integers(1, 10))
        grid = TokenGrid(frames, *(int(side) for side in random.integers(1, 8, 2)))
        yield pytest.param(grid, DTYPES[number % 3], number, id=f"{grid}-{number}")


@pytest.mark.parametrize(("grid", "dtype", "seed"), list(random_cases(30)))
@pytest.mark.parametrize("threshold", [None, 0.35, 0.8])
def test_a_threshold_merges_what_the_plain_loops_merge(grid, dtype, seed, threshold):
    tokens = video(grid, (16, 33, 64)[seed % 3], dtype=dtype, seed=seed)
    similarity = similarities(tokens, grid)
    limit = 0.6 if threshold is None else threshold
    assert np.abs(similarity - limit).min() > ROUNDING
    plan = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, threshold=threshold))
    check(plan, similarity >= limit, similarity, tokens, grid)


@pytest.mark.parametrize(("grid", "dtype", "seed"), list(random_cases(30)))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_budget_merges_the_most_similar_of_the_plain_loops(grid, dtype, seed, share):
    tokens = video(grid, (16, 33, 64)[seed % 3], dtype=dtype, seed=seed)
    similarity = similarities(tokens, grid)
    first = grid.tokens_per_frame
    num_kept = first + int(share * (grid.num_tokens - first))
    ranked = np.sort(similarity, axis=None)
    if first < num_kept < grid.num_tokens:
        assert ranked[num_kept] - ranked[num_kept - 1] > ROUNDING
    merged = np.zeros(similarity.shape, dtype=bool)
    merged.ravel()[np.argsort(-similarity, axis=None)[: grid.num_tokens - num_kept]] = True
    plan = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, budget=num_kept, threshold=0.1))
    check(plan, merged, similarity, tokens, grid)


def test_the_random_videos_have_runs_of_several_lengths_and_heads_after_the_first_frame():
    grid = TokenGrid(9, 5, 7)
    plan = plan_fusion(video(grid, 33, seed=2), grid, CONFIG)
    lengths = torch.bincount(plan.match_index)[plan.keep_index]
    assert {1, 2, 3, 4} <= set(lengths.tolist())
    assert (plan.keep_index[lengths > 1] >= 35).sum() > 10


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_tokens_within_2e_6_of_200_thresholds_on_similarities_may_flip(dtype):
    grid = TokenGrid(8, 7, 7)
    tokens = video(grid, 48, dtype=dtype, seed=5)
    similarity = similarities(tokens, grid).ravel()
    for threshold in similarity[similarity > -0.9][:200]:
        plan = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, threshold=float(threshold)))
        kept = np.isin(np.arange(grid.num_tokens), plan.keep_index.numpy())
        flipped = kept != (similarity < threshold)
        assert np.abs(similarity[flipped] - threshold).max(initial=0) < ROUNDING
        assert flipped.sum() <= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("legs", "threshold"), [((3, 4), 0.6), ((7, 24), 0.28), ((24, 7), 0.96)])
def test_a_similarity_equal_to_the_threshold_merges_as_float32_compares(legs, threshold, dtype):
    grid = TokenGrid(2, 1, 1)
    tokens = torch.tensor([[1, 0], list(legs)], dtype=dtype)
    above = float(np.nextafter(np.float32(threshold), np.float32(2)))
    for value, num_kept in ((threshold, 1), (above, 2)):
        plan = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, threshold=value))
        assert plan.num_kept == num_kept


def test_a_run_ends_where_a_cell_changes_and_the_next_begins_there():
    grid = TokenGrid(6, 1, 2)
    left = [[1, 0], [2, 0], [6, 0], [0, 4], [0, 2], [8, 0]]
    right = [[0, 1], [1, 0], [0, 1], [0, 3], [0, 5], [0, 7]]
    tokens = torch.tensor([left, right], dtype=torch.float32).transpose(0, 1).reshape(12, 2)
    plan = plan_fusion(tokens, grid, CONFIG)
    assert plan.keep_index.tolist() == [0, 1, 3, 5, 6, 10]
    assert plan.match_index.tolist() == [0, 1, 0, 3, 0, 5, 6, 5, 6, 5, 10, 5]
    assert plan.apply(tokens).tolist() == [[3, 0], [0, 1], [1, 0], [0, 4], [0, 3], [8, 0]]
    assert plan.score.tolist() == [-math.inf, -math.inf, 0, 0, 0, 0]
    thirds = torch.tensor([1 / 3, 1.0, 1 / 3, 1.0, 1 / 3, 1 / 4, 1 / 2, 1 / 4, 1 / 2, 1 / 4, 1.0])
    assert torch.equal(plan.weight, torch.cat([thirds, torch.tensor([1 / 4])]))


def test_of_equal_similarities_a_budget_merges_the_earlier():
    grid = TokenGrid(4, 1, 3)
    plan = plan_fusion(torch.ones(12, 4), grid, dataclasses.replace(CONFIG, budget=7))
    assert plan.keep_index.tolist() == [0, 1, 2, 8, 9, 10, 11]
    assert plan.match_index.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 8, 9, 10, 11]


@pytest.mark.parametrize("num_frames", [256, 257, 300, 513])
@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_beyond_256_frames_keep_their_mean(num_frames, dtype):
    grid = TokenGrid(num_frames, 2, 2)
    scene = torch.randn(1, 4, 32, generator=seeded(8))
    trend = torch.linspace(1.0, 3.0, num_frames)[:, None, None]
    tokens = (scene * trend).flatten(0, 1).to(dtype)
    plan = plan_fusion(tokens, grid, CONFIG)
    assert plan.keep_index.tolist() == [0, 1, 2, 3]
    exact = tokens.double().view(num_frames, 4, 32).mean(dim=0)
    assert torch.equal(plan.apply(tokens), exact.to(dtype))
    assert not torch.equal(plan.apply(tokens), tokens[:4])
    np.testing.assert_allclose(plan.weight.numpy(), np.float32(1 / num_frames), rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_similarities_have_the_resolution_of_float32_for_narrow_tokens(dtype):
    grid = TokenGrid(30, 6, 6)
    plan = plan_fusion(video(grid, 64, dtype=dtype), grid, dataclasses.replace(CONFIG, budget=1.0))
    assert plan.score[36:].unique().numel() > 0.98 * 29 * 36


@pytest.mark.parametrize("sides", [(1, 1, 1), (1, 3, 5), (1, 1, 4)])
def test_a_video_of_one_frame_is_kept_whole(sides):
    grid = TokenGrid(*sides)
    tokens = video(grid, 8)
    for budget in (None, grid.num_tokens):
        plan = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, threshold=-0.9, budget=budget))
        assert plan.keep_ratio == 1.0
        assert plan.score.tolist() == [-math.inf] * grid.num_tokens
        assert torch.equal(plan.apply(tokens), tokens)


def test_a_budget_below_the_first_frame_names_the_smallest_possible_one():
    grid = TokenGrid(5, 3, 4)
    with pytest.raises(FusionError, match=r"'framefusion' keeps all 12 .* at least 12 tokens"):
        plan_fusion(video(grid, 32), grid, dataclasses.replace(CONFIG, budget=11))
    assert plan_fusion(
        video(grid, 32), grid, dataclasses.replace(CONFIG, budget=12)
    ).keep_index.tolist() == list(range(12))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("budget", [None, 1.0])
def test_tokens_that_are_not_finite_are_refused(value, frames, budget):
    grid = TokenGrid(frames, 2, 2)
    tokens = video(grid, 8)
    tokens[-1, 3] = value
    with pytest.raises(FusionError, match=f"grid {frames}x2x2 are not finite"):
        plan_fusion(tokens, grid, dataclasses.replace(CONFIG, budget=budget))


def test_zero_tokens_resemble_nothing():
    grid = TokenGrid(3, 1, 2)
    plan = plan_fusion(torch.zeros(6, 4), grid, CONFIG)
    assert plan.num_kept == 6
    assert plan.score.tolist() == [-math.inf] * 2 + [0.0] * 4


@st.composite
def videos(draw):
    grid = TokenGrid(*(draw(st.integers(1, 6)) for _ in range(3)))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    if draw(st.booleans()):
        whole = torch.randint(-2, 3, (grid.num_tokens, 3), generator=seeded(seed))
        return whole.to(dtype), grid
    return video(grid, draw(st.sampled_from([1, 3, 16])), dtype=dtype, seed=seed), grid


configs = st.builds(FusionConfig, method=st.just("framefusion"), threshold=st.floats(-0.99, 1.0))


@CASES
@given(videos(), st.floats(0, 1))
def test_a_budget_is_exact_and_merges_none_less_similar_than_a_kept_one(video, share):
    tokens, grid = video
    first = grid.tokens_per_frame
    num_kept = first + round(share * (grid.num_tokens - first))
    plan = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, budget=num_kept))
    everything = plan_fusion(tokens, grid, dataclasses.replace(CONFIG, budget=1.0))
    assert plan.num_kept == num_kept
    fused = torch.ones(grid.num_tokens, dtype=torch.bool)
    fused[plan.keep_index] = False
    least_merged = min(everything.score[fused].tolist(), default=math.inf)
    assert max(plan.score.tolist()) <= least_merged


@CASES
@given(videos(), configs)
def test_a_match_is_the_last_kept_token_of_the_cell_so_far(video, config):
    tokens, grid = video
    plan = plan_fusion(tokens, grid, config)
    kept, per_frame = set(plan.keep_index.tolist()), grid.tokens_per_frame
    assert set(range(per_frame)) <= kept
    for index, match in enumerate(plan.match_index.tolist()):
        assert match == next(i for i in range(index, -1, -per_frame) if i in kept)
    length = torch.bincount(plan.match_index)[plan.match_index]
    assert torch.equal(plan.weight, 1 / length.float())


@CASES
@given(videos(), configs, st.integers(1, 6))
def test_no_later_frame_matters_to_a_threshold(video, config, num_frames):
    tokens, grid = video
    start = TokenGrid(min(num_frames, grid.frames), grid.height, grid.width)
    whole = plan_fusion(tokens, grid, config)
    part = plan_fusion(tokens[: start.num_tokens], start, config)
    assert torch.equal(part.match_index, whole.match_index[: start.num_tokens])
    assert torch.equal(part.score, whole.score[: part.num_kept])


@CASES
@given(videos(), configs)
def test_the_same_bytes_give_the_same_plan(video, config):
    tokens, grid = video
    one, two = plan_fusion(tokens, grid, config), plan_fusion(tokens.clone(), grid, config)
    for name in ("keep_index", "match_index", "weight", "score", "storage_order"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert torch.equal(one.apply(tokens), two.apply(tokens))
