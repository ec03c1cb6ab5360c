"""Token merging against a reference that merges pairs one by one in float64."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import DTYPES, ROUNDING, seeded

CASES = settings(max_examples=50, deadline=None)


def noise(grid, num_channels, *, dtype=torch.float32, seed=0):
    """Frames that resemble each other, and cells that do a little."""
    generator = seeded(seed)
    frame = torch.randn(1, grid.tokens_per_frame, num_channels, generator=generator)
    change = torch.randn(grid.frames, *frame.shape[1:], generator=generator)
    return (frame + change + 0.3).flatten(0, 1).to(dtype)


def plan_of(tokens, grid, budget=None):
    return plan_fusion(tokens, grid, FusionConfig(method="tome", budget=budget))


@dataclass
class Merged:
    """A token of the reference: where it stands, what it holds, and its running mean."""

    place: int
    vector: np.ndarray
    size: int = 1
    members: list[int] = field(default_factory=list)

    def take(self, other):
        size = self.size + other.size
        self.vector = (self.size * self.vector + other.size * other.vector) / size
        self.size = size
        self.members += other.members


def reference(tokens, num_kept):
    """What is left, and the smallest margin of any decision."""
    left = [Merged(i, v, members=[i]) for i, v in enumerate(tokens.double().numpy())]
    margin = math.inf
    while len(left) > num_kept:
        sources, destinations = left[::2], left[1::2]
        unit = [
            [t.vector / max(np.linalg.norm(t.vector), 1e-12) for t in side]
            for side in (sources, destinations)
        ]
        cosine = np.stack(unit[0]) @ np.stack(unit[1]).T
        target, best = cosine.argmax(axis=1), cosine.max(axis=1)
        if len(destinations) > 1:
            margin = min(margin, np.diff(np.sort(cosine, axis=1)[:, -2:], axis=1).min())
        ranked = sorted(range(len(sources)), key=lambda s: (-best[s], s))
        count = min(len(sources), len(left) - num_kept)
        if count < len(sources):
            margin = min(margin, best[ranked[count - 1]] - best[ranked[count]])
        for s in ranked[:count]:
            destinations[target[s]].take(sources[s])
        joined = set(ranked[:count])
        left = destinations + [token for s, token in enumerate(sources) if s not in joined]
        left.sort(key=lambda token: token.place)
    return left, margin


def random_cases(count):
    random = np.random.default_rng(23)
    for number in range(count):
        grid = TokenGrid(int(random.integers(1, 10)), *(int(n) for n in random.integers(1, 8, 2)))
        budget = (None, 0.1, 0.55, 0.8)[number % 4]
        yield pytest.param(grid, budget, DTYPES[number % 3], number, id=f"{grid}-{number}")


@pytest.mark.parametrize(("grid", "budget", "dtype", "seed"), list(random_cases(36)))
def test_groups_and_means_are_those_of_merging_pairs_one_by_one(grid, budget, dtype, seed):
    tokens = noise(grid, (16, 33, 64)[seed % 3], dtype=dtype, seed=seed)
    num_kept = max(1, int((0.3 if budget is None else budget) * grid.num_tokens))
    left, margin = reference(tokens, num_kept)
    assert margin > ROUNDING
    plan = plan_of(tokens, grid, budget)
    assert plan.keep_index.tolist() == [token.place for token in left]
    for token in left:
        assert (plan.match_index == token.place).nonzero().flatten().tolist() == sorted(
            token.members
        )
    assert plan.score.tolist() == [token.size for token in left]
    assert plan.storage_order.tolist() == list(range(num_kept))
    rows = torch.from_numpy(np.stack([token.vector for token in left]))
    assert torch.equal(plan.apply(tokens), rows.to(dtype))


def test_the_random_videos_take_several_rounds_and_share_destinations():
    grid = TokenGrid(9, 5, 7)
    sizes = plan_of(noise(grid, 33), grid, 0.1).score
    assert sizes.max() > 4
    assert sizes.unique().numel() > 4


@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_a_video_of_many_blocks_finds_the_nearest_destination_in_all_of_them(budget):
    grid = TokenGrid(5, 31, 30)
    tokens = noise(grid, 24, seed=6)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1)
    cosine = unit[0::2] @ unit[1::2].T
    first = plan_of(tokens, grid, 0.5)
    assert first.keep_index.tolist() == list(range(1, 4650, 2))
    found = (first.match_index[0::2] - 1) // 2
    ranked = cosine.topk(2, dim=1).values
    clear = ranked[:, 0] - ranked[:, 1] > ROUNDING
    assert clear.sum() > 0.99 * len(clear)
    assert found[clear].tolist() == cosine.argmax(dim=1)[clear].tolist()
    chosen = cosine.gather(1, found[:, None])
    assert (chosen > ranked[:, :1] - ROUNDING).all()
    assert plan_of(tokens, grid, budget).num_kept == int(budget * 4650)


def test_repeated_frames_join_cell_by_cell_and_end_as_one_frame():
    grid = TokenGrid(4, 1, 3)
    tokens = torch.eye(3).repeat(4, 1) * torch.tensor([1.0, 2.0, 4.0])
    half, third = plan_of(tokens, grid, 6), plan_of(tokens, grid, 3)
    assert half.keep_index.tolist() == [1, 3, 5, 7, 9, 11]
    assert half.match_index.tolist() == [3, 1, 5, 3, 1, 5, 3, 7, 5, 9, 1, 11]
    assert half.score.tolist() == [3, 3, 3, 1, 1, 1]
    assert third.keep_index.tolist() == [3, 7, 11]
    assert third.match_index.tolist() == [3, 7, 11] * 4
    assert third.apply(tokens).tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 4]]


def test_of_equal_pairs_the_earlier_source_joins_first():
    grid = TokenGrid(1, 2, 4)
    for num_kept, joined in ((7, [0]), (6, [0, 2]), (5, [0, 2, 4]), (4, [0, 2, 4, 6])):
        plan = plan_of(torch.ones(8, 4), grid, num_kept)
        assert plan.match_index.tolist() == [1 if i in joined else i for i in range(8)]


def test_the_most_alike_source_joins_before_earlier_ones():
    tokens = torch.tensor([[4.0, 3.0], [1.0, 0.0], [0.0, 5.0], [0.0, 1.0], [3.0, 4.0]])
    plan = plan_of(tokens, TokenGrid(1, 1, 5), 3)
    assert plan.match_index.tolist() == [1, 1, 3, 3, 4]
    assert plan.apply(tokens).tolist() == [[2.5, 1.5], [0, 3], [3, 4]]
    assert plan_of(tokens, TokenGrid(1, 1, 5), 4).match_index.tolist() == [0, 1, 3, 3, 4]


def test_a_destination_that_others_joined_is_compared_as_their_mean():
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [6.0, 0.0], [5.0, 0.0]])
    tokens[4:, 1] = torch.tensor([8.0, 0.25])
    first = plan_of(tokens, TokenGrid(1, 2, 3), 3)
    assert first.match_index.tolist() == [1, 1, 3, 3, 3, 5]
    second = plan_of(tokens, TokenGrid(1, 2, 3), 2)
    assert second.match_index.tolist() == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_channels", [17, 40, 64, 1000])
@pytest.mark.parametrize("sides", [(3, 1, 5), (7, 3, 1), (7, 3, 13), (9, 16, 17)])
def test_a_source_joins_the_earliest_of_equal_destinations(sides, num_channels, dtype):
    grid = TokenGrid(*sides)
    few = torch.randn(5, num_channels, generator=seeded(1)).to(dtype)
    kind = torch.randint(0, 5, (grid.num_tokens,), generator=seeded(2))
    plan = plan_of(few[kind], grid, grid.num_tokens // 2)
    sources, destinations = kind[0::2].tolist(), kind[1::2].tolist()
    matches = plan.match_index[0::2].tolist()
    found = {i: matches[i] for i, k in enumerate(sources) if k in destinations}
    assert found == {i: 2 * destinations.index(sources[i]) + 1 for i in found}
    assert len(found) >= len(sources) / 2


@pytest.mark.parametrize("sides", [(1, 1, 1), (1, 1, 2), (1, 1, 3), (9, 1, 1), (3, 5, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_budget_of_one_token_is_the_mean_of_the_video(sides, dtype):
    grid = TokenGrid(*sides)
    tokens = noise(grid, 16, dtype=dtype)
    plan = plan_of(tokens, grid, 1)
    assert plan.score.tolist() == [grid.num_tokens]
    assert torch.equal(plan.apply(tokens)[0], tokens.double().mean(dim=0).to(dtype))


def test_the_default_keeps_three_tokens_in_ten():
    grid = TokenGrid(4, 5, 5)
    assert plan_of(noise(grid, 8), grid).num_kept == 30


def test_the_whole_budget_keeps_every_token_unchanged():
    grid = TokenGrid(3, 2, 5)
    tokens = noise(grid, 8, dtype=torch.bfloat16)
    plan = plan_of(tokens, grid, 1.0)
    assert plan.match_index.tolist() == list(range(30))
    assert torch.equal(plan.apply(tokens), tokens)
    assert plan.weight.tolist() == [1.0] * 30


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_tokens_that_are_not_finite_or_overflow_are_refused(value, budget):
    grid = TokenGrid(2, 2, 2)
    tokens = noise(grid, 8)
    tokens[-1, 3] = value
    with pytest.raises(FusionError, match="grid 2x2x2 are not finite, or too large"):
        plan_of(tokens, grid, budget)


def test_zero_tokens_join_the_earliest_destination():
    assert plan_of(torch.zeros(4, 8), TokenGrid(1, 2, 2), 2).match_index.tolist() == [1, 1, 1, 3]


def test_videos_too_large_to_compare_are_refused_with_what_to_choose_instead():
    grid = TokenGrid(257, 16, 16)
    with pytest.raises(FusionError, match=r"257x16x16 .* 65792, more than the 65536 .*'framefusi"):
        plan_of(torch.ones(grid.num_tokens, 1), grid)


class LargestTensor(TorchDispatchMode):
    """Notes the values of the largest tensor that an operation inside makes."""

    num_values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            given = {each.untyped_storage().data_ptr() for each in args if torch.is_tensor(each)}
            if result.untyped_storage().data_ptr() not in given:
                self.num_values = max(self.num_values, result.numel())
        return result


def test_neither_all_cosines_nor_all_tokens_are_held_at_once():
    grid = TokenGrid(36, 16, 16)
    tokens = noise(grid, 256, dtype=torch.bfloat16)
    with LargestTensor() as largest:
        plan_of(tokens, grid)
    assert 1024 * 1024 < largest.num_values <= 2048 * 1024 < tokens.numel()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_speed_settings_of_the_process_do_not_matter(precision):
    grid = TokenGrid(9, 7, 7)
    tokens = noise(grid, 64)
    expected = plan_of(tokens, grid, 0.8).match_index.tolist()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu"):
            assert plan_of(tokens, grid, 0.8).match_index.tolist() == expected
    finally:
        torch.set_float32_matmul_precision(before)


@st.composite
def videos(draw):
    grid = TokenGrid(*(draw(st.integers(1, 6)) for _ in range(3)))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    num_channels = draw(st.sampled_from([1, 3, 16]))
    if draw(st.booleans()):
        whole = torch.randint(-2, 3, (grid.num_tokens, num_channels), generator=seeded(seed))
        return whole.to(dtype), grid
    return noise(grid, num_channels, dtype=dtype, seed=seed), grid


@CASES
@given(videos(), st.integers(1, 216))
def test_a_budget_is_exact_and_every_token_is_in_one_group(video, budget):
    tokens, grid = video
    plan = plan_of(tokens, grid, budget)
    assert plan.num_kept == min(budget, grid.num_tokens)
    assert plan.match_index[plan.keep_index].tolist() == plan.keep_index.tolist()
    assert plan.score.tolist() == torch.bincount(plan.match_index)[plan.keep_index].tolist()
    assert torch.equal(plan.weight, 1 / torch.bincount(plan.match_index)[plan.match_index].float())
    assert plan.apply(tokens).shape == (plan.num_kept, tokens.shape[1])


@CASES
@given(videos(), st.floats(0.01, 1.0))
def test_the_same_bytes_give_the_same_plan(video, budget):
    tokens, grid = video
    one, two = plan_of(tokens, grid, budget), plan_of(tokens.clone(), grid, budget)
    for name in ("keep_index", "match_index", "weight", "score", "storage_order"):
        assert torch.equal(getattr(one, name), getattr(two, name))


@CASES
@given(videos(), st.integers(1, 216), st.integers(1, 216))
def test_a_smaller_budget_joins_groups_that_a_larger_one_has_within_the_same_rounds(
    video, one, two
):
    tokens, grid = video
    fewest = grid.num_tokens // 2
    small, large = sorted(max(fewest, budget, 1) for budget in (one, two))
    narrow, wide = plan_of(tokens, grid, small), plan_of(tokens, grid, large)
    joined = wide.match_index != torch.arange(grid.num_tokens)
    assert torch.equal(narrow.match_index[joined], wide.match_index[joined])
