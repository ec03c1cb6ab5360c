"""What fusion loses: against plain loops in float64, and in cases that can be told by hand."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.decode.clips import write_scene_clip
from pipeline.fusion import METHODS, plan_fusion
from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.quality import (
    CUT_BELOW,
    LEVELS,
    LOW_FROM,
    STILL_FROM,
    Coverage,
    Quality,
    Spread,
    measure_quality,
    measure_rows,
    motion_levels,
    token_cosines,
)
from schemas.errors import FusionError, GridMismatchError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.synthetic import REPOSITORY

ROUNDING = 2e-6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PERFECT = Spread(1.0, 1.0, 1.0)


def cosine(left, right):
    lengths = np.linalg.norm(left), np.linalg.norm(right)
    if max(lengths) == 0:
        return 1.0
    return float(left @ right) / (lengths[0] * lengths[1]) if min(lengths) > 0 else 0.0


def levels_by_loops(tokens, grid):
    """Names of the levels, and how far the nearest bound is from any decision."""
    frames = tokens.reshape(grid.frames, grid.tokens_per_frame, -1)
    pairs = [
        [cosine(now, then) for now, then in zip(frames[t], frames[t - 1], strict=True)]
        for t in range(1, grid.frames)
    ]
    is_cut = [False] + [np.mean(row) < CUT_BELOW for row in pairs]
    first = pairs[0] if pairs and not is_cut[1] else [1.0] * grid.tokens_per_frame
    found, margins = [], [abs(np.mean(row) - CUT_BELOW) for row in pairs]
    for cut, row in zip(is_cut, [first, *pairs], strict=True):
        for value in row:
            margins += [abs(value - STILL_FROM), abs(value - LOW_FROM)]
            name = "still" if value >= STILL_FROM else "low" if value >= LOW_FROM else "high"
            found.append("cut" if cut else name)
    return np.array(found), min(margins)


def spread_by_loops(values):
    ordered = sorted(values)
    place = (len(ordered) - 1) * 0.01
    below = int(place)
    above = ordered[min(below + 1, len(ordered) - 1)]
    first = ordered[below] + (above - ordered[below]) * (place - below)
    return [sum(ordered) / len(ordered), first, ordered[0]]


def figures(quality):
    return {
        name: [
            dataclasses.astuple(coverage.representative),
            dataclasses.astuple(coverage.nearest),
            coverage.num_tokens,
        ]
        for name, coverage in {"whole": quality.whole, **quality.levels}.items()
    }


def figures_by_loops(tokens, rows, keep_index, match_index, grid):
    representative = [
        cosine(token, rows[keep_index.index(match)])
        for token, match in zip(tokens, match_index, strict=True)
    ]
    nearest = [max(cosine(token, row) for row in rows) for token in tokens]
    names, margin = levels_by_loops(tokens, grid)
    assert margin > ROUNDING
    found = {}
    for name in ("whole", *LEVELS):
        chosen = np.flatnonzero((names == name) | (name == "whole")).tolist()
        if chosen:
            found[name] = [
                spread_by_loops([representative[i] for i in chosen]),
                spread_by_loops([nearest[i] for i in chosen]),
                len(chosen),
            ]
    return found


def video(grid, num_channels, *, seed, dtype=torch.float32):
    """Frames that resemble the one before more or less; a third one may be entirely new."""
    generator = torch.Generator().manual_seed(seed)
    shape = (grid.tokens_per_frame, num_channels)
    frames = [torch.randn(shape, generator=generator)]
    for t in range(1, grid.frames):
        amount = torch.rand(shape[0], 1, generator=generator)
        change = torch.randn(shape, generator=generator)
        frames.append(change if t % 3 == 2 else frames[-1] + amount * change)
    return torch.cat(frames).to(dtype)


def averaging_plan(grid, group_of):
    """A plan whose rows are the plain means of the tokens with one ``group_of`` number."""
    group = torch.tensor(group_of)
    first = torch.tensor([group_of.index(number) for number in group_of])
    keep = first.unique()
    return FusionPlan(
        method="framefusion",
        grid=grid,
        keep_index=keep,
        match_index=first,
        score=torch.zeros(len(keep)),
        storage_order=torch.arange(len(keep)),
        nested=False,
        weight=1.0 / (group[:, None] == group).sum(dim=1),
    )


@pytest.mark.parametrize("seed", range(18))
def test_every_figure_is_that_of_the_plain_loops(seed):
    random = np.random.default_rng(seed)
    grid = TokenGrid(*(int(side) for side in random.integers(1, [8, 5, 5])))
    tokens = video(grid, 24, seed=seed, dtype=DTYPES[seed % 3])
    if seed % 2:
        group_of = random.integers(0, 1 + grid.num_tokens // 2, grid.num_tokens).tolist()
        plan = averaging_plan(grid, group_of)
    else:
        config = FusionConfig(method=("random", "uniform", "ttf")[seed // 2 % 3])
        plan = plan_fusion(tokens, grid, config)
    quality = measure_quality(tokens, plan)
    expected = figures_by_loops(
        tokens.double().numpy(),
        plan.apply(tokens).double().numpy(),
        plan.storage_index.tolist(),
        plan.match_index.tolist(),
        grid,
    )
    found = figures(quality)
    assert quality.num_kept == plan.num_kept
    assert quality.keep_ratio == plan.keep_ratio
    assert list(found) == list(expected)
    for name, (representative, nearest, count) in expected.items():
        assert found[name][2] == count
        np.testing.assert_allclose(found[name][0], representative, atol=ROUNDING, rtol=0)
        np.testing.assert_allclose(found[name][1], nearest, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [FusionConfig(), FusionConfig(method="uniform", budget=0.2)])
def test_a_static_video_loses_nothing_and_is_still(config, dtype):
    grid = TokenGrid(6, 3, 5)
    frame = torch.randn(15, 33, generator=torch.Generator().manual_seed(0))
    tokens = frame.repeat(6, 1).to(dtype)
    quality = measure_quality(tokens, plan_fusion(tokens, grid, config))
    coverage = Coverage(90, PERFECT, PERFECT)
    assert quality == Quality(
        num_kept=quality.num_kept,
        num_tokens=coverage.num_tokens,
        step=1,
        whole=coverage,
        levels={"still": coverage},
    )
    assert quality.num_kept < 90


def test_a_kept_token_that_is_stored_unchanged_has_cosine_one_exactly():
    grid = TokenGrid(5, 4, 4)
    tokens = video(grid, 1001, seed=1)
    plan = plan_fusion(tokens, grid, FusionConfig(method="random", budget=0.5))
    cosines = token_cosines(
        tokens,
        plan.apply(tokens),
        grid,
        keep_index=plan.storage_index,
        match_index=plan.match_index,
    )
    assert (cosines.representative[plan.keep_index] == 1).all()
    assert (cosines.nearest[plan.keep_index] == 1).all()
    assert (cosines.representative < 1).sum() == grid.num_tokens - plan.num_kept


def test_the_mean_of_two_tokens_at_right_angles_has_cosine_half_root_two_with_both():
    grid = TokenGrid(2, 1, 2)
    tokens = torch.tensor([[1.0, 0, 0], [0, 0, 2.0], [0, 1.0, 0], [0, 0, 2.0]])
    quality = measure_quality(tokens, averaging_plan(grid, [0, 1, 0, 1]))
    half = 0.5**0.5
    for spread in (quality.whole.representative, quality.whole.nearest):
        assert (spread.mean, spread.minimum) == pytest.approx(((1 + half) / 2, half), abs=1e-7)


def test_the_nearest_row_may_be_another_than_the_one_that_stands_for_a_token():
    grid = TokenGrid(1, 1, 4)
    tokens = torch.tensor([[1.0, 0], [0, 1.0], [0, 3.0], [4.0, 3.0]])
    quality = measure_rows(
        tokens,
        tokens[[1, 0]],
        grid,
        keep_index=torch.tensor([1, 0]),
        match_index=torch.tensor([0, 1, 0, 1]),
    )
    assert quality.whole.representative.mean == pytest.approx((1 + 1 + 0 + 0.6) / 4)
    assert quality.whole.nearest.mean == pytest.approx((1 + 1 + 1 + 0.8) / 4)
    assert quality.whole.representative.minimum == 0
    assert quality.whole.nearest.minimum == 0.8


def test_the_first_percentile_lies_between_two_cosines_as_numpy_says_by_default():
    assert Spread.of(torch.arange(101).double() / 100).percentile_1 == pytest.approx(0.01)
    assert Spread.of(torch.arange(11).double() / 10).percentile_1 == pytest.approx(0.01)
    assert Spread.of(torch.tensor([0.25], dtype=torch.float64)) == Spread(0.25, 0.25, 0.25)


def test_motion_levels_follow_the_cosine_with_the_frame_before():
    grid = TokenGrid(4, 1, 3)
    right, up = [1.0, 0.0], [0.0, 1.0]
    frames = [
        [right, right, right],
        [right, [4.0, 3.0], [1.0, 1.0]],  # cosines 1, 0.8 and 0.71: mean above one half
        [right, [4.0, 3.0], [1.0, 1.0]],
        [up, [-3.0, 4.0], [1.0, 1.0]],  # cosines 0, 0 and 1: a third
    ]
    levels = motion_levels(torch.tensor(frames).flatten(0, 1), grid)
    names = [LEVELS[level] for level in levels]
    assert names[:3] == ["still", "low", "high"]
    assert names[3:6] == ["still", "low", "high"]
    assert names[6:9] == ["still"] * 3
    assert names[9:] == ["cut"] * 3


def test_the_bounds_belong_to_the_calmer_level():
    grid = TokenGrid(2, 1, 2)
    low = torch.tensor([[1.0, 0], [1.0, 0], [4.0, 3.0], [1.0, 0]])
    assert motion_levels(low, grid).tolist() == [1, 0, 1, 0]
    no_cut = torch.tensor([[1.0, 0], [1.0, 0], [0.0, 1.0], [1.0, 0]])
    assert motion_levels(no_cut, grid).tolist() == [2, 0, 2, 0]


def test_a_first_frame_before_a_cut_is_still():
    grid = TokenGrid(2, 1, 2)
    tokens = torch.tensor([[1.0, 0], [1.0, 0], [0.0, 1.0], [0.0, 1.0]])
    assert motion_levels(tokens, grid).tolist() == [0, 0, 3, 3]


def test_one_frame_is_still():
    grid = TokenGrid(1, 2, 3)
    tokens = video(grid, 8, seed=2)
    quality = measure_quality(tokens, plan_fusion(tokens, grid, FusionConfig()))
    assert list(quality.levels) == ["still"]
    assert quality.whole == Coverage(6, PERFECT, PERFECT)


def test_a_zero_vector_is_like_another_one_and_unlike_all_else():
    grid = TokenGrid(3, 1, 2)
    tokens = torch.tensor([[0.0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [0, 0]])
    assert motion_levels(tokens, grid).tolist() == [0, 0, 0, 0, 0, 2]
    cosines = token_cosines(
        tokens,
        tokens[[1, 2]],
        grid,
        keep_index=torch.tensor([1, 2]),
        match_index=torch.tensor([1, 1, 2, 1, 2, 1]),
    )
    assert cosines.representative.tolist() == [0, 1, 1, 1, 1, 0]
    assert cosines.nearest.tolist() == [1, 1, 1, 1, 1, 1]


def test_a_zero_row_is_the_nearest_of_a_token_whose_other_rows_point_away():
    grid = TokenGrid(1, 1, 3)
    tokens = torch.tensor([[1.0, 0], [-1.0, 0], [0.0, 0]])
    keep = torch.tensor([1, 2])
    match = torch.tensor([1, 1, 2])
    cosines = token_cosines(tokens, tokens[keep], grid, keep_index=keep, match_index=match)
    assert cosines.representative.tolist() == [-1, 1, 1]
    assert cosines.nearest.tolist() == [0, 1, 1]


class LargestTensor(TorchDispatchMode):
    """Notes the most values of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.num_values = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.num_values = max(self.num_values, tensor.numel())
        return made


def test_many_tokens_and_rows_are_compared_all_with_all_in_small_blocks():
    grid = TokenGrid(9, 16, 18)
    tokens = torch.randn(grid.num_tokens, 6, generator=torch.Generator().manual_seed(3))
    plan = plan_fusion(tokens, grid, FusionConfig(method="random", budget=0.9))
    keep, match = plan.storage_index, plan.match_index
    with LargestTensor() as largest:
        found = token_cosines(tokens, tokens[keep], grid, keep_index=keep, match_index=match)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1)
    nearest = (unit @ unit[keep].T).max(dim=1).values
    np.testing.assert_allclose(found.nearest, nearest, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(found.representative, (unit * unit[match]).sum(1), atol=ROUNDING)
    assert 1024 < plan.num_kept < grid.num_tokens
    assert largest.num_values <= 1024**2


def test_rows_of_a_cache_are_measured_in_any_order_and_rounded_as_they_are():
    grid = TokenGrid(4, 3, 3)
    tokens = video(grid, 64, seed=4)
    plan = plan_fusion(tokens, grid, FusionConfig(method="random", budget=0.4))
    rows = plan.apply(tokens).to(torch.bfloat16)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))
    match = plan.match_index.int()
    stored = measure_rows(
        tokens, rows, grid, keep_index=plan.storage_index.int(), match_index=match
    )
    reordered = measure_rows(
        tokens,
        rows[shuffled],
        grid,
        keep_index=plan.storage_index[shuffled],
        match_index=match,
    )
    exact = measure_quality(tokens, plan)
    assert stored == reordered
    assert 0 < exact.whole.representative.mean - stored.whole.representative.mean < 1e-4
    assert stored.whole.representative.percentile_1 < 1


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_speed_settings_of_the_process_do_not_matter(precision):
    grid = TokenGrid(6, 4, 4)
    tokens = video(grid, 64, seed=6)
    plan = plan_fusion(tokens, grid, FusionConfig(method="random", budget=0.3))
    expected = measure_quality(tokens, plan)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu"):
            assert measure_quality(tokens, plan) == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("lost", [-1, 0, 99])
def test_a_match_without_a_row_is_refused_with_what_to_do(lost):
    grid = TokenGrid(1, 1, 3)
    tokens = torch.eye(3)
    keep, match = torch.tensor([1, 2]), torch.tensor([lost, 1, 2])
    with pytest.raises(FusionError, match=r"matches of 1 tokens have no row\. Load the video"):
        measure_rows(tokens, tokens[keep], grid, keep_index=keep, match_index=match)


@pytest.mark.parametrize(
    ("keep", "law"), [([1, 1], "names a token twice"), ([1, 3], "leaves the grid 1x1x3")]
)
def test_kept_tokens_that_cannot_be_are_refused(keep, law):
    tokens = torch.eye(3)
    with pytest.raises(FusionError, match=law):
        measure_rows(
            tokens,
            tokens[:2],
            TokenGrid(1, 1, 3),
            keep_index=torch.tensor(keep),
            match_index=torch.tensor([1, 1, 1]),
        )


@pytest.mark.parametrize("rows_shape", [(1, 3), (2, 4)])
def test_rows_of_another_shape_are_refused(rows_shape):
    keep, match = torch.tensor([0, 1]), torch.tensor([0, 1, 1])
    with pytest.raises(GridMismatchError, match=r"expected \(\(2, 3\), \(3,\)\)"):
        measure_rows(
            torch.eye(3),
            torch.ones(rows_shape),
            TokenGrid(1, 1, 3),
            keep_index=keep,
            match_index=match,
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("place", ["token", "row"])
def test_values_that_float32_cannot_compare_are_refused(value, place):
    tokens, rows = torch.eye(3), torch.eye(3)
    (tokens if place == "token" else rows)[2, 1] = value
    keep = torch.arange(3)
    with pytest.raises(FusionError, match="not finite"):
        measure_rows(
            tokens,
            rows,
            TokenGrid(1, 1, 3),
            keep_index=keep,
            match_index=torch.tensor([0, 1, 1]),
        )


def test_figures_that_contradict_each_other_are_refused():
    with pytest.raises(FusionError, match="no cosines lie like"):
        Spread(0.2, 0.5, 0.4)
    with pytest.raises(FusionError, match="no cosines lie like"):
        Spread(1.2, 0.5, 0.4)
    with pytest.raises(FusionError, match="at least one token"):
        Coverage(0, PERFECT, PERFECT)
    with pytest.raises(FusionError, match="cannot be farther"):
        Coverage(1, PERFECT, Spread(1.0, 1.0, 0.9))
    one = Coverage(1, PERFECT, PERFECT)
    with pytest.raises(FusionError, match="levels hold 2 of 1"):
        Quality(num_kept=1, num_tokens=1, step=1, whole=one, levels={"still": one, "cut": one})
    with pytest.raises(FusionError, match="the levels are"):
        Quality(num_kept=1, num_tokens=1, step=1, whole=one, levels={"calm": one})
    with pytest.raises(FusionError, match="2 of 1 tokens are kept"):
        Quality(num_kept=2, num_tokens=1, step=1, whole=one, levels={"still": one})


def test_of_large_videos_every_so_many_th_token_is_measured_and_all_cells_have_their_turn():
    grid = TokenGrid(16, 30, 34)
    tokens = torch.randn(grid.num_tokens, 4, generator=torch.Generator().manual_seed(0))
    plan = plan_fusion(tokens, grid, FusionConfig(method="random", budget=0.6))
    quality = measure_quality(tokens, plan)
    assert quality.step == 7, "2^27 pairs allow every second; 2 to 6 share a factor with 1020 cells"
    assert quality.whole.num_tokens == len(range(0, grid.num_tokens, 7))
    assert quality.keep_ratio == plan.keep_ratio
    cells = {index % grid.tokens_per_frame for index in range(0, grid.num_tokens, 7)}
    assert len(cells) == grid.tokens_per_frame
    rows = plan.apply(tokens)
    exact = torch.cosine_similarity(tokens.double(), tokens[plan.match_index].double())[::7]
    assert quality.whole.representative.mean == pytest.approx(float(exact.mean()), abs=1e-6)
    assert len(rows) == quality.num_kept


@pytest.mark.slow
def test_the_benchmark_tells_of_every_method_what_it_loses_or_why_it_cannot(tmp_path):
    write_scene_clip(tmp_path / "scene.mp4", seed=0, seconds=4)
    script = REPOSITORY / "benchmarks" / "bench_quality.py"
    told = subprocess.run(
        [sys.executable, script, "--quick", "--videos", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("|")]
    groups = ("real clips, encoder tokens", "real clips, pixels", "synthetic, cuts")
    for method in METHODS.values():
        told_of = [row for row in rows if row[0] == method.name]
        assert len([row for row in told_of if row[1] in ("25%", "15%")]) == (
            2 * len(groups) if method.budgeted else 0
        )
        assert all(
            "cannot: needs >= " in row[2] or row[3].startswith("0.")
            for row in told_of
            if method.name != "none"
        )
    assert [row[3:9] for row in rows if row[0] == "none"] == [["1.000"] * 6] * len(groups)
    winners = [row for row in rows if row[0].startswith(groups) and row[1] in ("25%", "15%")]
    assert len(winners) == 2 * len(groups)
