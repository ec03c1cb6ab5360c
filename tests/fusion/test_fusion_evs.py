"""EVS against a reference of plain loops in float64, written from the rules and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import (
    DTYPES,
    EPSILON,
    ROUNDING,
    plan_bytes,
    seeded,
    signs,
    video,
    videos,
)

CASES = settings(max_examples=60, deadline=None)


def reference_scores(tokens, grid):
    values = tokens.double().numpy()
    per_frame = grid.tokens_per_frame
    scores = []
    for index in range(grid.num_tokens):
        if index < per_frame:
            scores.append(-np.inf)
            continue
        now, then = values[index], values[index - per_frame]
        norms = max(np.linalg.norm(now), EPSILON) * max(np.linalg.norm(then), EPSILON)
        scores.append(float(now @ then) / norms)
    return np.array(scores)


def lowest(scores, count):
    return sorted(sorted(range(len(scores)), key=lambda index: (scores[index], index))[:count])


def match_by_loops(kept, grid):
    found = []
    for index in range(grid.num_tokens):
        while index not in kept:
            index -= grid.tokens_per_frame
        found.append(index)
    return found


def plan_evs(tokens, grid, budget=None):
    return plan_fusion(tokens, grid, FusionConfig(method="evs", budget=budget))


def random_cases(count):
    random = np.random.default_rng(17)
    for number in range(count):
        grid = TokenGrid(int(random.integers(1, 10)), *(int(n) for n in random.integers(1, 8, 2)))
        num_kept = int(random.integers(grid.tokens_per_frame, grid.num_tokens + 1))
        yield pytest.param(
            grid, num_kept, DTYPES[number % 3], number, id=f"{grid}-{num_kept}-{number}"
        )


@pytest.mark.parametrize(("grid", "num_kept", "dtype", "seed"), list(random_cases(45)))
def test_the_plan_is_that_of_the_plain_loops(grid, num_kept, dtype, seed):
    tokens = video(grid, (16, 33, 64)[seed % 3], dtype=dtype, seed=seed)
    exact = reference_scores(tokens, grid)
    plan = plan_evs(tokens, grid, num_kept)
    kept = plan.keep_index.tolist()
    expected = lowest(exact, num_kept)
    doubtful = set(kept) ^ set(expected)
    cut = max(exact[expected])
    assert len(kept) == num_kept
    assert len(doubtful) <= 2
    assert all(abs(exact[index] - cut) < ROUNDING for index in doubtful)
    np.testing.assert_allclose(plan.score.numpy(), exact[kept], atol=1e-6, rtol=0)
    later = exact[plan.storage_index.numpy()][grid.tokens_per_frame :]
    assert (np.diff(later) > -ROUNDING).all()
    assert plan.match_index.tolist() == match_by_loops(set(kept), grid)


@pytest.mark.parametrize("seed", range(12))
def test_of_equal_scores_the_earlier_token_is_kept_and_stored_first(seed):
    grid = TokenGrid(2 + seed % 5, 3, 1 + seed % 4)
    tokens = signs(grid, (4, 16)[seed % 2], seed=seed)
    exact = reference_scores(tokens, grid)
    assert len(set(exact)) <= 18
    everything = plan_evs(tokens, grid, 1.0).storage_index.tolist()
    assert everything == sorted(range(grid.num_tokens), key=lambda index: (exact[index], index))
    for num_kept in range(grid.tokens_per_frame, grid.num_tokens + 1):
        assert plan_evs(tokens, grid, num_kept).keep_index.tolist() == lowest(exact, num_kept)


def test_a_small_video_is_planned_as_by_hand():
    right, up, both, left = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]
    tokens = torch.tensor([right, up, right, right, left, both])
    plan = plan_evs(tokens, TokenGrid(3, 1, 2), 4)
    assert plan.keep_index.tolist() == [0, 1, 3, 4]
    assert plan.storage_index.tolist() == [0, 1, 4, 3]
    assert plan.score.tolist() == [-np.inf, -np.inf, 0.0, -1.0]
    assert plan.match_index.tolist() == [0, 1, 0, 3, 4, 3]
    assert (plan.nested, plan.anchor_frame, plan.weight) == (True, None, None)


@pytest.mark.parametrize(
    ("sides", "expected"), [((10, 3, 4), 36), ((9, 7, 7), 132), ((3, 3, 4), 12), ((1, 1, 1), 1)]
)
def test_without_a_budget_three_tenths_stay_but_a_whole_frame_at_least(sides, expected):
    grid = TokenGrid(*sides)
    assert plan_evs(video(grid, 16), grid).num_kept == expected


@pytest.mark.parametrize("budget", [11, 1, 0.15])
def test_a_budget_below_one_frame_names_the_smallest_possible_one(budget):
    grid = TokenGrid(5, 3, 4)
    with pytest.raises(FusionError, match=r"'evs'.*at least 12 tokens"):
        plan_evs(video(grid, 16), grid, budget)


def test_one_frame_is_kept_whole():
    grid = TokenGrid(1, 3, 5)
    plan = plan_evs(video(grid, 16), grid)
    assert plan.keep_index.tolist() == list(range(15))
    assert plan.score.tolist() == [-np.inf] * 15


def test_cosines_that_bfloat16_cannot_tell_apart_are_told_apart():
    grid = TokenGrid(3, 1, 1)
    tokens = torch.zeros(3, 64, dtype=torch.bfloat16)
    tokens[:, 0] = 32.0
    tokens[1, 1] = 1.0
    tokens[2, 2] = 1.0
    coarse = torch.nn.functional.cosine_similarity(tokens[1:], tokens[:-1])
    assert coarse[0] == coarse[1]
    plan = plan_evs(tokens, grid, 2)
    assert plan.keep_index.tolist() == [0, 2]
    assert plan.match_index.tolist() == [0, 0, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_storage_type_does_not_enter_the_arithmetic(dtype):
    grid = TokenGrid(9, 5, 5)
    tokens = video(grid, 256, dtype=dtype)
    plan = plan_evs(tokens, grid)
    assert plan_bytes(plan) == plan_bytes(plan_evs(tokens.float(), grid))
    assert len(plan.score.unique()) > 0.95 * (plan.num_kept - 25)


def test_equal_frames_keep_the_first_one_and_then_the_earliest():
    grid = TokenGrid(6, 4, 4)
    frame = torch.randint(-3, 4, (16, 24), generator=seeded(1)).float()
    frame[frame.norm(dim=1) == 0] = 1.0
    tokens = frame[:1].expand(16, 24).repeat(6, 1)
    assert plan_evs(tokens, grid, 40).keep_index.tolist() == list(range(40))


def test_zero_tokens_have_cosine_zero_with_everything():
    grid = TokenGrid(3, 1, 2)
    assert plan_evs(torch.zeros(6, 4), grid, 6).score.tolist() == [-np.inf] * 2 + [0.0] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("frames", [1, 4])
def test_tokens_that_are_not_finite_are_refused(value, frames):
    grid = TokenGrid(frames, 3, 3)
    tokens = video(grid, 8)
    tokens[-1, 3] = value
    with pytest.raises(FusionError, match=f"grid {grid} are not finite"):
        plan_evs(tokens, grid)


@CASES
@given(videos(), st.data())
def test_any_budget_is_exact_and_a_prefix_of_any_larger_one(case, data):
    tokens, grid = case
    bounds = st.integers(grid.tokens_per_frame, grid.num_tokens)
    small, large = sorted((data.draw(bounds), data.draw(bounds)))
    narrow, wide = plan_evs(tokens, grid, small), plan_evs(tokens, grid, large)
    assert (narrow.num_kept, wide.num_kept) == (small, large)
    assert narrow.storage_index.tolist() == wide.storage_index[:small].tolist()
    assert narrow.nested
    first = grid.tokens_per_frame
    assert narrow.storage_index[:first].tolist() == list(range(first))


@CASES
@given(videos())
def test_a_dropped_token_has_the_latest_kept_one_of_its_cell_before_it(case):
    tokens, grid = case
    plan = plan_evs(tokens, grid)
    assert plan.match_index.tolist() == match_by_loops(set(plan.keep_index.tolist()), grid)
    assert plan.match_index[plan.keep_index].tolist() == plan.keep_index.tolist()


@CASES
@given(videos())
def test_the_same_bytes_give_the_same_plan(case):
    tokens, grid = case
    assert plan_bytes(plan_evs(tokens, grid)) == plan_bytes(plan_evs(tokens.clone(), grid))
