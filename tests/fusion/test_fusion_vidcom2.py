"""VidCom2 against plain loops in float64, written from the rules and nothing else."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fusion import plan_fusion
from pipeline.fusion.nearest import nearest_kept
from pipeline.fusion.vidcom2 import alikeness, channel_variances, frame_counts
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import (
    DTYPES,
    EPSILON,
    kept_per_frame,
    plan_bytes,
    seeded,
    signs,
)

CLEAR = 1e-9
"""Decisions of the tests hang on differences above this: float64 on both sides must agree."""
CASES = settings(max_examples=25, deadline=None)


@dataclass
class Reference:
    channels: list
    score: np.ndarray
    counts: list
    kept: list
    margin: float


def kernel_sum(left, right):
    distance = float(((left - right) ** 2).sum())
    return sum(math.exp(-distance / (2 * 2.0**power)) for power in range(-3, 2))


def reference(tokens, grid, share, num_kept):
    values = tokens.double().numpy().reshape(grid.frames, grid.tokens_per_frame, -1)
    variance = values.reshape(grid.num_tokens, -1).var(axis=0)
    half = max(1, len(variance) // 2)
    ranked = sorted(range(len(variance)), key=lambda channel: (variance[channel], channel))
    channels = sorted(ranked[:half])
    margins = [variance[ranked[half]] - variance[ranked[half - 1]]] if len(ranked) > half else []
    unit = values[:, :, channels]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), EPSILON)
    centre = unit.mean(axis=(0, 1))
    alike = np.zeros((2, grid.frames, grid.tokens_per_frame))
    for t, n in np.ndindex(*alike.shape[1:]):
        alike[0, t, n] = kernel_sum(unit[t, n], centre)
        alike[1, t, n] = kernel_sum(unit[t, n], unit[t].mean(axis=0))
    score = alike.sum(axis=0)
    unique = [-float(np.mean(row)) for row in alike[0]]
    powers = [math.exp((u - max(unique)) / 0.01) for u in unique]
    counts = []
    for power in powers:
        weight = power / sum(powers)
        wanted = min(1.0, share * (1 + weight - 1 / grid.frames)) * grid.tokens_per_frame
        margins.append(abs(wanted % 1 - 0.5))
        counts.append(max(1, round(wanted)))
    kept = []
    for t, count in enumerate(counts):
        order = sorted(range(grid.tokens_per_frame), key=lambda n: (score[t, n], n))
        kept += [(t, n) for n in order[:count]]
    while len(kept) > num_kept:
        frames = [t for t, _ in kept]
        spare = [place for place in kept if frames.count(place[0]) > 1]
        kept.remove(max(spare, key=lambda place: (score[place], place)))
    while len(kept) < num_kept:
        rest = [place for place in np.ndindex(*score.shape) if place not in kept]
        kept.append(min(rest, key=lambda place: (score[place], place)))
    ordered = np.sort(score.ravel())
    if len(ordered) > 1:
        margins.append(np.diff(ordered).min())
    return Reference(
        channels=channels,
        score=score,
        counts=counts,
        kept=sorted(t * grid.tokens_per_frame + n for t, n in kept),
        margin=min(margins, default=1.0),
    )


def video(grid, num_channels, *, dtype=torch.float32, seed=0):
    """Frames that resemble each other more or less, in channels that vary more or less."""
    generator = seeded(seed)
    shape = (grid.frames, grid.tokens_per_frame, num_channels)
    background = torch.randn(1, *shape[1:], generator=generator)
    amount = 1.6 * torch.rand(shape[0], 1, 1, generator=generator)
    change = torch.randn(shape, generator=generator)
    spread = 0.5 + torch.rand(num_channels, generator=generator)
    return ((background + amount * change) * spread + 0.3).flatten(0, 1).to(dtype)


def plan_vidcom2(tokens, grid, budget=None):
    return plan_fusion(tokens, grid, FusionConfig(method="vidcom2", budget=budget))


def random_cases(count):
    random = np.random.default_rng(29)
    for number in range(count):
        grid = TokenGrid(int(random.integers(1, 10)), *(int(n) for n in random.integers(1, 8, 2)))
        num_kept = int(random.integers(grid.frames, grid.num_tokens + 1))
        yield pytest.param(
            grid, num_kept, DTYPES[number % 3], number, id=f"{grid}-{num_kept}-{number}"
        )


@pytest.mark.parametrize(("grid", "num_kept", "dtype", "seed"), list(random_cases(36)))
def test_the_plan_is_that_of_the_plain_loops(grid, num_kept, dtype, seed):
    tokens = video(grid, (16, 21, 33)[seed % 3], dtype=dtype, seed=seed)
    expected = reference(tokens, grid, num_kept / grid.num_tokens, num_kept)
    assert expected.margin > CLEAR or num_kept == grid.num_tokens
    plan = plan_vidcom2(tokens, grid, num_kept)
    assert plan.keep_index.tolist() == expected.kept
    assert plan.score.tolist() == pytest.approx(expected.score.ravel()[expected.kept], abs=1e-6)


@pytest.mark.parametrize("budget", [None, 0.1, 0.25, 0.4, 0.77, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fraction_enters_the_shares_as_it_stands(budget, dtype):
    grid = TokenGrid(7, 3, 5)
    tokens = video(grid, 24, dtype=dtype, seed=4)
    share = 0.25 if budget is None else budget
    expected = reference(tokens, grid, share, int(share * 105))
    assert expected.margin > CLEAR
    assert plan_vidcom2(tokens, grid, budget).keep_index.tolist() == expected.kept


@pytest.mark.parametrize("budget", [0.15, 0.45])
def test_a_fraction_is_not_rounded_to_a_number_of_tokens_first(budget):
    grid = TokenGrid(3, 3, 5)
    tokens = video(grid, 24, seed=0)
    count = int(budget * 45)
    by_fraction = reference(tokens, grid, budget, count).kept
    by_count = reference(tokens, grid, count / 45, count).kept
    assert by_fraction != by_count
    assert plan_vidcom2(tokens, grid, budget).keep_index.tolist() == by_fraction
    assert plan_vidcom2(tokens, grid, count).keep_index.tolist() == by_count


@pytest.mark.parametrize(("budget", "surplus"), [(10, 2), (11, 1), (12, 0), (28, -3), (40, -7)])
def test_a_sum_that_misses_the_budget_is_made_exact(budget, surplus):
    grid = TokenGrid(5, 3, 3)
    tokens = video(grid, 24, seed=1)
    expected = reference(tokens, grid, budget / 45, budget)
    assert sum(expected.counts) - budget == surplus
    assert plan_vidcom2(tokens, grid, budget).keep_index.tolist() == expected.kept


@pytest.mark.parametrize("frames", range(1, 9))
def test_every_frame_keeps_a_token_even_with_one_token_for_each(frames):
    grid = TokenGrid(frames, 3, 4)
    tokens = video(grid, 16, seed=frames)
    plan = plan_vidcom2(tokens, grid, frames)
    score = reference(tokens, grid, 1.0, grid.num_tokens).score
    assert kept_per_frame(plan) == [1] * frames
    assert (plan.keep_index % 12).tolist() == score.argmin(axis=1).tolist()


@pytest.mark.parametrize("budget", [1, 4, 0.07])
def test_a_budget_below_one_token_for_each_frame_names_the_smallest_possible_one(budget):
    grid = TokenGrid(5, 3, 4)
    with pytest.raises(FusionError, match=r"'vidcom2'.*at least 5 tokens"):
        plan_vidcom2(video(grid, 16), grid, budget)


@pytest.mark.parametrize(
    ("sides", "expected"), [((8, 4, 4), 32), ((7, 3, 5), 26), ((6, 1, 2), 6), ((1, 1, 1), 1)]
)
def test_without_a_budget_a_quarter_stays_but_a_token_of_each_frame(sides, expected):
    grid = TokenGrid(*sides)
    assert plan_vidcom2(video(grid, 16), grid).num_kept == expected


def test_a_frame_unlike_the_others_keeps_the_share_that_the_others_give():
    grid = TokenGrid(4, 8, 8)
    tokens = 1 + 0.1 * torch.randn(4, 64, 32, generator=seeded(3))
    tokens[2] *= -1
    counts = kept_per_frame(plan_vidcom2(tokens.flatten(0, 1), grid))
    assert counts == [12, 12, 28, 12]


def test_counts_round_a_half_to_the_even_number():
    same = torch.zeros(2, dtype=torch.float64)
    assert frame_counts(same, 0.25, 10).tolist() == [2, 2]
    assert frame_counts(same, 0.35, 10).tolist() == [4, 4]


def test_counts_are_never_none_and_never_above_the_frame():
    unequal = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert frame_counts(unequal, 0.01, 10).tolist() == [1, 1]
    assert frame_counts(unequal, 0.9, 10).tolist() == [4, 10]


def test_counts_follow_the_softmax_at_a_hundredth():
    unequal = torch.tensor([0.0, 0.01], dtype=torch.float64)
    weight = 1 / (1 + math.e)
    shares = [0.25 * (0.5 + weight), 0.25 * (1.5 - weight)]
    assert frame_counts(unequal, 0.25, 10**6).tolist() == [round(s * 10**6) for s in shares]


def test_of_channels_that_vary_alike_the_lower_are_compared():
    grid = TokenGrid(3, 1, 2)
    ramp = torch.arange(6.0)
    order = torch.tensor([4, 2, 5, 0, 1, 3])
    for columns in ([ramp, ramp[order], -ramp], [ramp[order], -ramp + 7, ramp]):
        tokens = torch.stack([*columns, 100 * ramp], dim=1)
        variance = channel_variances(tokens, grid)
        assert variance[:3].tolist() == [105.0] * 3
        found = plan_vidcom2(tokens, grid, 4)
        alone = alikeness(tokens, grid, torch.tensor([0, 1]))
        assert found.score.tolist() == sum(alone).flatten()[found.keep_index].float().tolist()


@pytest.mark.parametrize("num_channels", [1, 2, 3, 5])
def test_an_odd_number_of_channels_is_halved_downwards_to_one_at_least(num_channels):
    grid = TokenGrid(4, 2, 3)
    tokens = video(grid, num_channels, seed=1)
    expected = reference(tokens, grid, 0.5, 12)
    assert len(expected.channels) == max(1, num_channels // 2)
    found = plan_vidcom2(tokens, grid, 1.0).score
    assert found.tolist() == pytest.approx(expected.score.ravel(), abs=1e-6)


def test_variances_are_exact():
    grid = TokenGrid(6, 5, 5)
    tokens = torch.randn(150, 40, generator=seeded(2))
    exact = tokens.double().numpy().var(axis=0) * 150**2
    np.testing.assert_allclose(channel_variances(tokens, grid).numpy(), exact, rtol=1e-12)


def test_variances_survive_a_mean_a_million_times_larger():
    grid = TokenGrid(6, 5, 5)
    tokens = torch.randn(150, 40, generator=seeded(2)) * torch.linspace(1, 2, 40) + 1e6
    exact = tokens.double().numpy().var(axis=0) * 150**2
    np.testing.assert_allclose(channel_variances(tokens, grid).numpy(), exact, rtol=1e-12)
    squares = (tokens**2).mean(dim=0) - tokens.mean(dim=0) ** 2
    assert (squares.argsort() != torch.from_numpy(exact).argsort()).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_channel_has_variance_zero(dtype):
    grid = TokenGrid(7, 3, 3)
    tokens = video(grid, 4, dtype=dtype)
    tokens[:, 2] = 0.1
    variance = channel_variances(tokens, grid).tolist()
    assert [value == 0 for value in variance] == [False, False, True, False]


@pytest.mark.parametrize("num_channels", [2, 8, 40])
def test_of_equal_tokens_the_earlier_is_kept_wherever_they_stand(num_channels):
    grid = TokenGrid(4, 5, 7)
    few = torch.randn(3, num_channels, generator=seeded(5))
    kind = torch.randint(0, 3, (35,), generator=seeded(6))
    tokens = few[kind].repeat(4, 1)
    plan = plan_vidcom2(tokens, grid, 0.5)
    score = plan_vidcom2(tokens, grid, 1.0).score
    assert [len(score[kind.repeat(4) == k].unique()) for k in range(3)] == [1, 1, 1]
    cut = plan.score.max()
    candidates = (score == cut).nonzero().squeeze(1).tolist()
    for frame in range(4):
        inside = [index for index in candidates if index // 35 == frame]
        kept = [index for index in inside if index in plan.keep_index.tolist()]
        assert kept == inside[: len(kept)]
    assert (score < cut).sum() + sum(i in plan.keep_index.tolist() for i in candidates) == 70


def test_tokens_that_are_all_equal_keep_the_earliest_of_each_frame():
    grid = TokenGrid(3, 2, 2)
    assert plan_vidcom2(torch.ones(12, 8), grid, 5).keep_index.tolist() == [0, 1, 4, 5, 8]
    assert plan_vidcom2(torch.zeros(12, 8), grid, 5).keep_index.tolist() == [0, 1, 4, 5, 8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_storage_type_does_not_enter_the_arithmetic(dtype):
    grid = TokenGrid(9, 5, 5)
    tokens = video(grid, 256, dtype=dtype)
    plan = plan_vidcom2(tokens, grid)
    assert plan_bytes(plan) == plan_bytes(plan_vidcom2(tokens.float(), grid))
    assert len(plan.score.unique()) > 0.95 * plan.num_kept


def test_a_plan_is_stored_in_grid_order_and_is_not_nested():
    grid = TokenGrid(5, 3, 3)
    plan = plan_vidcom2(video(grid, 16), grid)
    assert plan.storage_index.tolist() == plan.keep_index.tolist()
    assert (plan.nested, plan.anchor_frame, plan.weight) == (False, None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_not_finite_are_refused_with_their_frame(value, dtype):
    grid = TokenGrid(4, 3, 3)
    tokens = video(grid, 8, dtype=dtype)
    tokens[2 * 9 + 5, 3] = value
    with pytest.raises(FusionError, match="token frame 2 of grid 4x3x3"):
        plan_vidcom2(tokens, grid)


def test_plan_does_not_depend_on_the_number_of_threads():
    grid = TokenGrid(9, 7, 9)
    tokens = video(grid, 520, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    plans = []
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            plans.append(plan_bytes(plan_vidcom2(tokens, grid)))
    finally:
        torch.set_num_threads(before)
    assert len(set(plans)) == 1


@st.composite
def videos(draw):
    grid = TokenGrid(draw(st.integers(1, 9)), *(draw(st.integers(1, 7)) for _ in range(2)))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**32))
    channels = draw(st.sampled_from([1, 3, 16, 40]))
    if draw(st.booleans()):
        return signs(grid, channels, seed=seed).to(dtype), grid
    return video(grid, channels, dtype=dtype, seed=seed), grid


@CASES
@given(videos(), st.data())
def test_any_budget_is_exact_and_leaves_no_frame_empty(case, data):
    tokens, grid = case
    num_kept = data.draw(st.integers(grid.frames, grid.num_tokens))
    plan = plan_vidcom2(tokens, grid, num_kept)
    assert plan.num_kept == num_kept
    assert min(kept_per_frame(plan)) >= 1


@CASES
@given(videos())
def test_each_frame_keeps_its_lowest_scores_the_earlier_of_equals(case):
    tokens, grid = case
    plan = plan_vidcom2(tokens, grid)
    steady = channel_variances(tokens, grid).argsort(stable=True)[: max(1, tokens.shape[1] // 2)]
    score = sum(alikeness(tokens, grid, steady.sort().values))
    order = score.argsort(dim=1, stable=True)
    kept = plan.keep_index.tolist()
    start = 0
    for frame, count in enumerate(kept_per_frame(plan)):
        cells = sorted(order[frame, :count].tolist())
        first = frame * grid.tokens_per_frame
        assert [index - first for index in kept[start : start + count]] == cells
        start += count


@CASES
@given(videos())
def test_the_nearest_kept_token_stands_for_a_dropped_one(case):
    tokens, grid = case
    plan = plan_vidcom2(tokens, grid)
    assert plan.match_index.tolist() == nearest_kept(plan.keep_index, grid).tolist()
    assert plan.match_index[plan.keep_index].tolist() == plan.keep_index.tolist()


@CASES
@given(videos())
def test_the_same_bytes_give_the_same_plan(case):
    tokens, grid = case
    assert plan_bytes(plan_vidcom2(tokens, grid)) == plan_bytes(plan_vidcom2(tokens.clone(), grid))
