"""DyCoke against a reference of plain loops in float64, written from the rules and nothing else."""

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
    kept_per_frame,
    plan_bytes,
    signs,
    video,
    videos,
)

CASES = settings(max_examples=60, deadline=None)


def partners(num_frames):
    """The partner of every reduced frame: first within pairs, then between two pairs."""
    found = {}
    for first in range(0, num_frames - 1, 2):
        found[first + 1] = first
    for first in range(0, num_frames, 4):
        if first + 2 < num_frames:
            found[first + 2] = first
    return dict(sorted(found.items()))


def reference_scores(tokens, grid):
    """For each reduced frame the cosine of each cell with its partner's."""
    frames = tokens.double().numpy().reshape(grid.frames, grid.tokens_per_frame, -1)
    scores = {}
    for frame, partner in partners(grid.frames).items():
        scores[frame] = []
        for now, then in zip(frames[frame], frames[partner], strict=True):
            norms = max(np.linalg.norm(now), EPSILON) * max(np.linalg.norm(then), EPSILON)
            scores[frame].append(float(now @ then) / norms)
    return scores


def reference_counts(grid, num_kept):
    """Tokens each reduced frame keeps, dealt out one by one."""
    reduced = list(partners(grid.frames))
    counts = dict.fromkeys(reduced, 0)
    spare = num_kept - smallest_budget(grid)
    while spare:
        for frame in reduced[:spare]:
            counts[frame] += 1
        spare -= len(reduced[:spare])
    return counts


def smallest_budget(grid):
    return (grid.frames - len(partners(grid.frames))) * grid.tokens_per_frame


def match_by_loops(kept, grid):
    found = []
    for index in range(grid.num_tokens):
        while index not in kept:
            frame = index // grid.tokens_per_frame
            index -= (frame - partners(grid.frames)[frame]) * grid.tokens_per_frame
        found.append(index)
    return found


def plan_dycoke(tokens, grid, budget=None):
    return plan_fusion(tokens, grid, FusionConfig(method="dycoke", budget=budget))


def random_cases(count):
    random = np.random.default_rng(23)
    for number in range(count):
        grid = TokenGrid(1 + number % 9, *(int(side) for side in random.integers(1, 8, 2)))
        num_kept = int(random.integers(smallest_budget(grid), grid.num_tokens + 1))
        yield pytest.param(
            grid, num_kept, DTYPES[number % 3], number, id=f"{grid}-{num_kept}-{number}"
        )


@pytest.mark.parametrize(("grid", "num_kept", "dtype", "seed"), list(random_cases(45)))
def test_the_plan_is_that_of_the_plain_loops(grid, num_kept, dtype, seed):
    tokens = video(grid, (16, 33, 64)[seed % 3], dtype=dtype, seed=seed)
    exact = reference_scores(tokens, grid)
    counts = reference_counts(grid, num_kept)
    plan = plan_dycoke(tokens, grid, num_kept)
    kept = set(plan.keep_index.tolist())
    for frame in range(grid.frames):
        start = frame * grid.tokens_per_frame
        found = {index - start for index in kept if 0 <= index - start < grid.tokens_per_frame}
        if frame not in counts:
            assert len(found) == grid.tokens_per_frame
            continue
        order = sorted(range(grid.tokens_per_frame), key=lambda n: (exact[frame][n], n))
        expected = set(order[: counts[frame]])
        doubtful = found ^ expected
        assert len(found) == len(expected)
        assert len(doubtful) <= 2
        cut = max((exact[frame][n] for n in expected), default=0.0)
        assert all(abs(exact[frame][n] - cut) < ROUNDING for n in doubtful)
    assert plan.match_index.tolist() == match_by_loops(kept, grid)


@pytest.mark.parametrize("seed", range(12))
def test_of_equal_cosines_the_earlier_cell_is_kept(seed):
    grid = TokenGrid(1 + seed % 9, 3, 1 + seed % 4)
    tokens = signs(grid, (4, 16)[seed % 2], seed=seed)
    exact = reference_scores(tokens, grid)
    plan = plan_dycoke(tokens, grid, 1.0)
    place = (plan.score * grid.tokens_per_frame).view(grid.frames, -1)
    for frame, scores in exact.items():
        order = sorted(range(grid.tokens_per_frame), key=lambda n: (scores[n], n))
        assert place[frame].argsort().tolist() == order


def test_a_small_video_is_planned_as_by_hand():
    right, up, both, left = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]
    frames = [[right, up], [right, right], [both, left], [both, right]]
    plan = plan_dycoke(torch.tensor(frames).flatten(0, 1), TokenGrid(4, 1, 2), 5)
    assert plan.keep_index.tolist() == [0, 1, 3, 5, 7]
    assert plan.match_index.tolist() == [0, 1, 0, 3, 0, 5, 0, 7]
    assert plan.score.tolist() == [-np.inf, -np.inf, 0.0, 0.0, 0.0]
    two = plan_dycoke(torch.tensor(frames).flatten(0, 1), TokenGrid(4, 1, 2), 7)
    assert two.storage_index.tolist() == [0, 1, 3, 5, 7, 2, 4]
    assert two.score.tolist() == [-np.inf, -np.inf, 0.5, 0.0, 0.5, 0.0, 0.0]
    assert (two.nested, two.anchor_frame, two.weight) == (True, None, None)


def test_a_token_dropped_twice_over_is_followed_to_the_frame_kept_whole():
    grid = TokenGrid(4, 1, 3)
    tokens = torch.ones(12, 4)
    plan = plan_dycoke(tokens, grid, 3)
    assert plan.keep_index.tolist() == [0, 1, 2]
    assert plan.match_index.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (1, [10]),
        (2, [10, 3]),
        (3, [10, 3, 3]),
        (4, [10, 3, 3, 3]),
        (5, [10, 3, 3, 3, 10]),
        (6, [10, 3, 3, 3, 10, 3]),
        (7, [10, 3, 3, 3, 10, 3, 3]),
        (8, [10, 3, 3, 3, 10, 3, 3, 3]),
        (9, [10, 3, 3, 3, 10, 3, 3, 3, 10]),
    ],
)
def test_without_a_budget_each_reduced_frame_keeps_three_tenths(num_frames, expected):
    grid = TokenGrid(num_frames, 2, 5)
    assert kept_per_frame(plan_dycoke(video(grid, 16), grid)) == expected


def test_the_last_group_is_reduced_like_the_others():
    grid = TokenGrid(8, 2, 5)
    tokens = video(grid, 16)
    exact = reference_scores(tokens, grid)
    assert list(partners(8).items())[3:] == [(5, 4), (6, 4), (7, 6)]
    kept = set(plan_dycoke(tokens, grid).keep_index.tolist())
    assert {n for n in range(10) if 60 + n in kept} == set(np.argsort(exact[6])[:3])


@pytest.mark.parametrize("num_frames", range(1, 14))
def test_no_frame_is_dropped_whatever_the_length(num_frames):
    grid = TokenGrid(num_frames, 1, 5)
    plan = plan_dycoke(video(grid, 8), grid)
    assert [count > 0 for count in kept_per_frame(plan)] == [True] * num_frames


@pytest.mark.parametrize("num_cells", [*range(1, 41), 90, 196, 1330, 10000])
def test_three_tenths_are_rounded_down_but_never_to_nothing(num_cells):
    grid = TokenGrid(2, 1, num_cells)
    plan = plan_dycoke(video(grid, 2), grid)
    assert kept_per_frame(plan) == [num_cells, max(1, int(0.3 * num_cells))]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (8, [4, 0, 0, 0, 4, 0]),
        (9, [4, 1, 0, 0, 4, 0]),
        (11, [4, 1, 1, 1, 4, 0]),
        (13, [4, 2, 1, 1, 4, 1]),
        (0.8, [4, 3, 3, 3, 4, 2]),
        (24, [4, 4, 4, 4, 4, 4]),
        (1000, [4, 4, 4, 4, 4, 4]),
    ],
)
def test_a_budget_is_shared_equally_and_the_earliest_frames_keep_one_more(budget, expected):
    grid = TokenGrid(6, 2, 2)
    assert kept_per_frame(plan_dycoke(video(grid, 16), grid, budget)) == expected


@pytest.mark.parametrize(("frames", "budget"), [(6, 23), (6, 1), (5, 0.3), (1, 11)])
def test_a_budget_below_the_whole_frames_names_the_smallest_possible_one(frames, budget):
    grid = TokenGrid(frames, 3, 4)
    smallest = smallest_budget(grid)
    with pytest.raises(FusionError, match=f"'dycoke'.*at least {smallest} tokens"):
        plan_dycoke(video(grid, 16), grid, budget)
    assert plan_dycoke(video(grid, 16), grid, smallest).num_kept == smallest


def test_one_frame_is_kept_whole():
    grid = TokenGrid(1, 3, 5)
    plan = plan_dycoke(video(grid, 16), grid)
    assert plan.keep_index.tolist() == list(range(15))
    assert plan.score.tolist() == [-np.inf] * 15
    assert plan_dycoke(video(grid, 16), grid, 1.0).num_kept == 15


def test_cosines_that_bfloat16_cannot_tell_apart_are_told_apart():
    grid = TokenGrid(2, 1, 2)
    tokens = torch.zeros(4, 64, dtype=torch.bfloat16)
    tokens[:, 0] = 32.0
    tokens[2, 1] = 1.0
    tokens[3, 1:3] = 1.0
    coarse = torch.nn.functional.cosine_similarity(tokens[2:], tokens[:2])
    assert coarse[0] == coarse[1]
    assert plan_dycoke(tokens, grid, 3).keep_index.tolist() == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_storage_type_does_not_enter_the_arithmetic(dtype):
    grid = TokenGrid(9, 5, 5)
    tokens = video(grid, 256, dtype=dtype)
    assert plan_bytes(plan_dycoke(tokens, grid)) == plan_bytes(plan_dycoke(tokens.float(), grid))


def test_a_partner_is_compared_as_it_was_before_it_lost_tokens():
    grid = TokenGrid(4, 1, 2)
    tokens = torch.eye(8)
    tokens[4] = tokens[0]
    tokens[6] = tokens[4]
    plan = plan_dycoke(tokens, grid, 5)
    assert plan.keep_index.tolist() == [0, 1, 2, 5, 7]
    assert plan.match_index[6] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_tokens_that_are_not_finite_are_refused(value, frames):
    grid = TokenGrid(frames, 3, 3)
    tokens = video(grid, 8)
    tokens[-1, 3] = value
    with pytest.raises(FusionError, match=f"grid {grid} are not finite"):
        plan_dycoke(tokens, grid)


@CASES
@given(videos(), st.data())
def test_any_budget_is_exact_and_a_prefix_of_any_larger_one(case, data):
    tokens, grid = case
    bounds = st.integers(smallest_budget(grid), grid.num_tokens)
    small, large = sorted((data.draw(bounds), data.draw(bounds)))
    narrow, wide = plan_dycoke(tokens, grid, small), plan_dycoke(tokens, grid, large)
    assert (narrow.num_kept, wide.num_kept) == (small, large)
    assert narrow.storage_index.tolist() == wide.storage_index[:small].tolist()
    assert narrow.nested


@CASES
@given(videos(), st.data())
def test_a_prefix_of_the_plan_without_a_budget_is_a_budget(case, data):
    tokens, grid = case
    stored = plan_dycoke(tokens, grid)
    small = data.draw(st.integers(smallest_budget(grid), stored.num_kept))
    narrow = plan_dycoke(tokens, grid, small)
    assert narrow.storage_index.tolist() == stored.storage_index[:small].tolist()
    places = stored.score[stored.storage_order]
    assert (places.diff().nan_to_num(0) >= 0).all()


@CASES
@given(videos(), st.integers(1, 9))
def test_without_a_budget_later_frames_do_not_matter(case, num_frames):
    tokens, grid = case
    num_frames = min(num_frames, grid.frames)
    part = TokenGrid(num_frames, grid.height, grid.width)
    early = plan_dycoke(tokens[: part.num_tokens], part)
    whole = plan_dycoke(tokens, grid)
    assert early.keep_index.tolist() == whole.keep_index[: early.num_kept].tolist()
    assert early.match_index.tolist() == whole.match_index[: part.num_tokens].tolist()


@CASES
@given(videos())
def test_a_dropped_token_has_what_its_partners_token_has(case):
    tokens, grid = case
    plan = plan_dycoke(tokens, grid)
    assert plan.match_index.tolist() == match_by_loops(set(plan.keep_index.tolist()), grid)
    assert plan.match_index[plan.keep_index].tolist() == plan.keep_index.tolist()


@CASES
@given(videos())
def test_the_same_bytes_give_the_same_plan(case):
    tokens, grid = case
    assert plan_bytes(plan_dycoke(tokens, grid)) == plan_bytes(plan_dycoke(tokens.clone(), grid))
