"""TTF by shots against plain loops in float64, written from the rules and nothing else."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fusion import plan_fusion
from pipeline.fusion.shots import find_shots
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import DTYPES, EPSILON, ROUNDING, plan_bytes

CUT_ROUNDING = 2e-5
CASES = settings(max_examples=20, deadline=None)


def cosine(left, right):
    norms = max(np.linalg.norm(left), EPSILON) * max(np.linalg.norm(right), EPSILON)
    return float(left @ right) / norms


def middle(values):
    ranked = sorted(values)
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


def reference_starts(tokens, grid, most=None):
    """First frames of the shots, and the smallest margin of any decision about them."""
    means = tokens.double().numpy().reshape(grid.frames, grid.tokens_per_frame, -1).mean(axis=1)
    likeness = {t: cosine(means[t], means[t - 1]) for t in range(1, grid.frames)}
    if not likeness:
        return [0], np.inf
    center = middle(likeness.values())
    spread = middle([abs(value - center) for value in likeness.values()])
    limit = min(center - 12 * spread, 0.97)
    candidates = sorted((value, t) for t, value in likeness.items() if value < limit)
    strengths = [value for value, _ in candidates]
    margin = min(
        min((abs(likeness[t] - limit) for t in range(2, grid.frames - 1)), default=np.inf),
        min((b - a for a, b in itertools.pairwise(strengths)), default=np.inf),
    )
    starts = [0]
    for _, t in candidates:
        if len(starts) == most:
            break
        if all(abs(t - other) >= 2 for other in (*starts, grid.frames)):
            starts.append(t)
    return sorted(starts), margin


def reference_fusion(tokens, grid, shots, window):
    """Best cosine, match and margin of every token, given the shots and their anchors."""
    frames = tokens.double().numpy().reshape(grid.frames, grid.height, grid.width, -1)
    index = np.arange(grid.num_tokens).reshape(frames.shape[:3])
    best = np.full(index.shape, -np.inf)
    match, margin = index.copy(), np.full(index.shape, np.inf)
    half = window // 2
    for shot in shots:
        for t in range(shot.start, shot.stop):
            if t == shot.anchor:
                continue
            for y, x in np.ndindex(grid.height, grid.width):
                for v in range(max(0, y - half), min(grid.height, y + half + 1)):
                    for u in range(max(0, x - half), min(grid.width, x + half + 1)):
                        value = cosine(frames[t, y, x], frames[shot.anchor, v, u])
                        gap = value - best[t, y, x]
                        if gap > 0:
                            best[t, y, x] = value
                            match[t, y, x] = index[shot.anchor, v, u]
                        margin[t, y, x] = abs(gap) if gap > 0 else min(margin[t, y, x], -gap)
    return best.ravel(), match.ravel(), margin.ravel()


def typical_frames(tokens, grid, start, stop):
    """The frames of a shot that may be its anchor, up to rounding."""
    means = tokens.double().numpy().reshape(grid.frames, grid.tokens_per_frame, -1).mean(axis=1)
    part = means[start:stop]
    values = [cosine(mean, part.mean(axis=0)) for mean in part]
    return [start + i for i, value in enumerate(values) if value > max(values) - ROUNDING]


def video(grid, num_channels, *, cuts=(), noise=0.3, seed=0, dtype=torch.float32, scenes=None):
    """Shots of unlike scenes, of which every frame differs a little."""
    generator = torch.Generator().manual_seed(seed)
    shape = (grid.tokens_per_frame, num_channels)
    frames, views = [], {}
    for t in range(grid.frames):
        number = sum(cut <= t for cut in cuts)
        name = number if scenes is None else scenes[number]
        if name not in views:
            views[name] = torch.randn(shape, generator=generator)
        amount = noise * torch.rand(shape[0], 1, generator=generator) * 2
        frames.append(views[name] + amount * torch.randn(shape, generator=generator))
    return torch.cat(frames).to(dtype)


def angles(*degrees):
    """One token of two channels per frame: the likeness is the cosine of the difference."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    tokens = torch.stack([radians.cos(), radians.sin()], dim=1).float()
    return tokens, TokenGrid(len(degrees), 1, 1)


def starts_of(shots):
    return [shot.start for shot in shots]


def random_cases(count):
    random = np.random.default_rng(5)
    for number in range(count):
        grid = TokenGrid(
            int(random.integers(1, 10)), *(int(side) for side in random.integers(1, 8, 2))
        )
        num_cuts = min(number % 4, grid.frames - 1)
        cuts = random.choice(np.arange(1, grid.frames), num_cuts, replace=False).tolist()
        dtype = DTYPES[number % 3]
        window = (1, 3, 5)[number % 3]
        yield pytest.param(grid, cuts, window, dtype, number, id=f"{grid}-{sorted(cuts)}-{number}")


@pytest.mark.parametrize(("grid", "cuts", "window", "dtype", "seed"), list(random_cases(40)))
def test_shots_anchors_and_matches_are_those_of_the_plain_loops(grid, cuts, window, dtype, seed):
    tokens = video(grid, 24, cuts=cuts, seed=seed, dtype=dtype, noise=0.5)
    shots = find_shots(tokens, grid)
    expected, margin = reference_starts(tokens, grid)
    assert margin > CUT_ROUNDING
    assert starts_of(shots) == expected
    for shot in shots:
        assert shot.anchor in typical_frames(tokens, grid, shot.start, shot.stop)
    best, match, gap = reference_fusion(tokens, grid, shots, window)
    plan = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", window=window, threshold=0.8))
    kept = best <= 0.8
    sure = np.abs(best - 0.8) > ROUNDING
    found = np.isin(np.arange(grid.num_tokens), plan.keep_index.numpy())
    np.testing.assert_array_equal(found[sure], kept[sure])
    sure &= kept | (gap > ROUNDING)
    assert sure.mean() > 0.95
    wanted = np.where(kept, np.arange(grid.num_tokens), match)
    np.testing.assert_array_equal(plan.match_index.numpy()[sure], wanted[sure])
    np.testing.assert_allclose(plan.score.numpy(), best[plan.keep_index.numpy()], atol=2e-6)


@pytest.mark.parametrize(
    "cuts", [(), (11,), (9, 16, 25), (3, 7, 12, 14, 19, 23, 30)], ids=lambda cuts: str(len(cuts))
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exactly_the_shots_of_a_video_are_found(cuts, dtype):
    grid = TokenGrid(32, 5, 6)
    for seed in range(4):
        shots = find_shots(video(grid, 64, cuts=cuts, seed=seed, dtype=dtype), grid)
        assert starts_of(shots) == [0, *cuts]
        assert [shot.stop for shot in shots] == [*cuts, 32]
        assert all(shot.start <= shot.anchor < shot.stop for shot in shots)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_still_video_is_cut_where_it_changes_although_no_likeness_differs(dtype):
    grid = TokenGrid(12, 3, 3)
    tokens = video(grid, 32, cuts=(2, 4, 9), noise=0.0, dtype=dtype)
    assert starts_of(find_shots(tokens, grid)) == [0, 2, 4, 9]
    assert starts_of(find_shots(video(grid, 32, noise=0.0, dtype=dtype), grid)) == [0]


@pytest.mark.parametrize("step", [1, 2])
def test_a_pan_has_no_cuts(step):
    grid = TokenGrid(24, 6, 8)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        world = torch.randn(6, 8 + 23 * step, 48, generator=generator)
        frames = [world[:, t * step : t * step + 8] for t in range(24)]
        tokens = torch.stack(frames).flatten(0, 2)
        assert starts_of(find_shots(tokens, grid)) == [0]
        means = torch.stack(frames).mean(dim=(1, 2))
        assert torch.cosine_similarity(means[1:], means[:-1]).min() < 0.97


@pytest.mark.parametrize(
    ("degrees", "starts"),
    [
        ((0,), [0]),
        ((0, 90), [0]),
        ((0, 0, 90), [0]),
        ((0, 90, 0), [0]),
        ((0, 90, 90, 90), [0]),
        ((0, 0, 0, 90), [0]),
        ((0, 0, 90, 90), [0, 2]),
        ((0, 0, 180, 180), [0, 2]),
        ((0, 0, 0, 10, 10, 10), [0]),
        ((0, 0, 0, 15, 15, 15), [0, 3]),
        ((0, 0, 0, 80, 0, 0, 0, 0), [0, 3]),
        ((0, 0, 0, 80, 5, 5, 5, 5), [0, 3]),
        ((0, 0, 0, 75, -5, -5, -5, -5), [0, 4]),
        ((0, 0, 0, 60, 140, 200, 200, 200, 200, 200), [0, 4]),
        ((0, 0, 0, 80, 140, 220, 220, 220, 220, 220), [0, 3, 5]),
        ((0, 90, 0, 90, 0, 90, 0, 90), [0]),
        ((0, 10, 20, 30, 40, 50, 140, 150, 160, 170), [0, 6]),
    ],
)
def test_cuts_of_hand_made_videos_are_the_strongest_at_least_two_frames_apart(degrees, starts):
    tokens, grid = angles(*degrees)
    shots = find_shots(tokens, grid)
    assert starts_of(shots) == starts
    assert [shot.stop for shot in shots] == [*starts[1:], len(degrees)]


def test_a_likeness_of_0_97_is_no_cut_and_one_just_below_is():
    for degrees, starts in ((14.0, [0]), (14.1, [0, 3])):
        tokens, grid = angles(0, 0, 0, degrees, degrees, degrees)
        assert starts_of(find_shots(tokens, grid)) == starts


def test_zero_tokens_are_one_shot():
    grid = TokenGrid(8, 2, 2)
    assert starts_of(find_shots(torch.zeros(grid.num_tokens, 8), grid)) == [0]


@pytest.mark.parametrize("num_cuts", [1, 3, 7])
def test_fewer_tokens_are_kept_than_with_one_anchor_for_all_shots(num_cuts):
    grid = TokenGrid(32, 5, 6)
    cuts = [32 * (i + 1) // (num_cuts + 1) for i in range(num_cuts)]
    tokens = video(grid, 64, cuts=cuts)
    single = plan_fusion(tokens, grid, FusionConfig()).keep_ratio
    by_shots = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots")).keep_ratio
    retention = (by_shots * 32 - (num_cuts + 1)) / (32 - (num_cuts + 1))
    assert single == pytest.approx(1 - 32 // (num_cuts + 1) / 32 * (1 - retention), abs=0.05)
    assert by_shots < 0.6 * single


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frames", [1, 2, 3, 9, 33])
@pytest.mark.parametrize("budget", [None, 0.5, 1.0])
def test_one_shot_is_planned_as_ttf_plans_it_bit_for_bit(frames, budget, dtype):
    grid = TokenGrid(frames, 3, 5)
    tokens = video(grid, 40, dtype=dtype)
    wanted = budget and max(15, int(budget * grid.num_tokens))
    found = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", budget=wanted))
    expected = plan_fusion(tokens, grid, FusionConfig(budget=wanted))
    assert len(find_shots(tokens, grid)) == 1
    assert plan_bytes(found)[1:] == plan_bytes(expected)[1:]
    assert (found.method, found.anchor_frame, found.nested) == ("ttf-shots", None, True)


def test_anchors_are_kept_whole_and_come_first():
    grid = TokenGrid(20, 3, 4)
    tokens = video(grid, 32, cuts=(6, 13))
    plan = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots"))
    first, middle, last = [shot.anchor for shot in find_shots(tokens, grid)]
    first = [anchor * 12 + cell for anchor in (first, last, middle) for cell in range(12)]
    assert plan.storage_index[:36].tolist() == first
    assert plan.score[plan.storage_order][:36].tolist() == [-torch.inf] * 36
    assert plan.score[plan.storage_order][36:].isfinite().all()
    assert (plan.score[plan.storage_order][36:].diff() >= 0).all()


def test_a_budget_that_is_too_small_for_all_anchors_keeps_the_strongest_cuts():
    degrees = (0, 0, 0, 40, 40, 40, 120, 120, 120, 180, 180, 180)
    tokens, grid = angles(*degrees)
    expected = {1: [0], 2: [0, 6], 3: [0, 6, 9], 4: [0, 3, 6, 9], 5: [0, 3, 6, 9]}
    for budget, starts in expected.items():
        assert starts_of(find_shots(tokens, grid, budget)) == starts
        plan = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", budget=budget))
        assert plan.num_kept == budget
        anchors = [shot.anchor for shot in find_shots(tokens, grid, budget)]
        assert sorted(plan.storage_index.tolist()[: len(anchors)]) == anchors


def test_of_equally_strong_cuts_the_earlier_are_kept():
    grid = TokenGrid(16, 3, 3)
    tokens = video(grid, 48, cuts=(4, 8, 12), noise=0.0, scenes="ABAB")
    for most, starts in ((1, [0]), (2, [0, 4]), (3, [0, 4, 8]), (4, [0, 4, 8, 12])):
        assert starts_of(find_shots(tokens, grid, most)) == starts


def test_every_number_of_shots_is_that_of_the_plain_loops():
    grid = TokenGrid(32, 3, 3)
    for seed in range(5):
        tokens = video(grid, 16, cuts=(4, 5, 11, 17, 18, 19, 24, 30), seed=seed)
        for most in range(1, 10):
            expected, margin = reference_starts(tokens, grid, most)
            assert margin > CUT_ROUNDING
            assert starts_of(find_shots(tokens, grid, most)) == expected


def test_every_budget_that_holds_all_anchors_is_a_prefix_of_the_storage_order():
    grid = TokenGrid(14, 2, 3)
    tokens = video(grid, 24, cuts=(5, 9))
    everything = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", budget=1.0))
    for budget in range(18, grid.num_tokens + 1):
        plan = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", budget=budget))
        assert plan.storage_index.tolist() == everything.storage_index[:budget].tolist()
    fewer = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", budget=17))
    assert int(fewer.score.isneginf().sum()) == 12


def test_a_lower_threshold_keeps_a_prefix_of_the_storage_order():
    grid = TokenGrid(14, 4, 3)
    tokens = video(grid, 24, cuts=(5, 9))
    wide = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", threshold=0.99))
    sizes = set()
    for threshold in (-0.5, 0.6, 0.8, 0.9, 0.95):
        plan = plan_fusion(tokens, grid, FusionConfig(method="ttf-shots", threshold=threshold))
        assert plan.storage_index.tolist() == wide.storage_index[: plan.num_kept].tolist()
        sizes.add(plan.num_kept)
    assert len(sizes) == 5


def test_a_budget_below_one_frame_names_the_smallest_possible_one():
    grid = TokenGrid(5, 3, 4)
    with pytest.raises(FusionError, match=r"'ttf-shots' .* at least 12 tokens"):
        plan_fusion(video(grid, 32), grid, FusionConfig(method="ttf-shots", budget=11))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_are_refused_with_their_frame(value):
    grid = TokenGrid(6, 3, 3)
    tokens = video(grid, 8)
    tokens[4 * 9 + 2, 1] = value
    with pytest.raises(FusionError, match="token frame 4 of grid 6x3x3"):
        plan_fusion(tokens, grid, FusionConfig(method="ttf-shots"))


@st.composite
def videos(draw):
    grid = TokenGrid(draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    cuts = draw(st.lists(st.integers(1, 11), max_size=5, unique=True))
    dtype = draw(st.sampled_from(DTYPES))
    noise = draw(st.sampled_from([0.0, 0.2, 1.0]))
    return video(grid, 16, cuts=cuts, noise=noise, seed=draw(st.integers(0, 99)), dtype=dtype), grid


@CASES
@given(videos(), st.integers(1, 6))
def test_shots_cover_the_frames_in_order_each_with_an_anchor_of_its_own(video, most):
    tokens, grid = video
    shots = find_shots(tokens, grid, most)
    assert len(shots) <= most
    assert [shot.start for shot in shots] == [0, *(shot.stop for shot in shots[:-1])]
    assert shots[-1].stop == grid.frames
    assert all(shot.start <= shot.anchor < shot.stop for shot in shots)
    assert len(shots) == 1 or min(shot.stop - shot.start for shot in shots) >= 2


@CASES
@given(videos(), st.floats(-0.99, 1.0), st.sampled_from([1, 3, 5]))
def test_every_fused_token_is_more_alike_its_match_than_the_threshold(video, threshold, window):
    tokens, grid = video
    config = FusionConfig(method="ttf-shots", threshold=threshold, window=window)
    plan = plan_fusion(tokens, grid, config)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1, eps=1e-12)
    fused = plan.match_index != torch.arange(grid.num_tokens)
    likeness = (unit * unit[plan.match_index]).sum(1)
    assert (likeness[fused] > threshold - ROUNDING).all()
    frame = plan.match_index // grid.tokens_per_frame
    own = torch.arange(grid.num_tokens) // grid.tokens_per_frame
    for shot in find_shots(tokens, grid):
        inside = fused & (own >= shot.start) & (own < shot.stop)
        assert (frame[inside] == shot.anchor).all()


@CASES
@given(videos(), st.floats(0.01, 1.0))
def test_a_budget_is_kept_exactly_and_the_same_bytes_give_the_same_plan(video, fraction):
    tokens, grid = video
    budget = max(grid.tokens_per_frame, int(fraction * grid.num_tokens))
    config = FusionConfig(method="ttf-shots", budget=budget)
    plan = plan_fusion(tokens, grid, config)
    assert plan.num_kept == budget
    assert int(plan.score.isneginf().sum()) % grid.tokens_per_frame == 0
    assert plan_bytes(plan) == plan_bytes(plan_fusion(tokens.clone(), grid, config))
