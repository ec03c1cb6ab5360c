"""TTF against a reference of plain loops in float64, written from the rules and nothing else."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.fusion import plan_fusion
from pipeline.fusion.anchor import select_anchor
from pipeline.fusion.forms import TORCH, compiled_form
from pipeline.fusion.ttf import Shot, best_match, plan_ttf
from schemas.errors import FusionError, GridMismatchError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.plain_ttf import cosine, exact_cosines, reference
from tests.fusion.sample_tokens import DTYPES, ROUNDING, plan_bytes, seeded, video


@pytest.fixture(params=["torch", "numba"])
def form_name(request):
    return request.param


def form_of(name, tokens):
    """The form, or plain torch for types of tokens that it leaves to that."""
    form = compiled_form(name) if name != "torch" else TORCH
    return form if form.reads(tokens) else TORCH


def random_cases(count):
    random = np.random.default_rng(7)
    for number in range(count):
        grid = TokenGrid(*(int(side) for side in random.integers(1, 10, 3)))
        window = (1, 3, 5, 7)[number % 4]
        yield pytest.param(
            grid, window, DTYPES[number % 3], number, id=f"{grid}-w{window}-{number}"
        )


@pytest.mark.parametrize(("grid", "window", "dtype", "seed"), list(random_cases(36)))
def test_anchor_cosines_and_matches_are_those_of_the_plain_loops(
    grid, window, dtype, seed, form_name
):
    tokens = video(grid, (16, 33, 64)[seed % 3], dtype=dtype, seed=seed)
    form = form_of(form_name, tokens)
    anchor = select_anchor(tokens, grid, form=form)
    expected = reference(tokens, grid, window, anchor=anchor)
    best, match = best_match(tokens, grid, [Shot(0, grid.frames, anchor)], window=window, form=form)
    others = np.isfinite(expected.best)
    np.testing.assert_array_equal(np.isfinite(best.numpy()), others)
    np.testing.assert_allclose(best.numpy()[others], expected.best[others], atol=1e-6, rtol=0)
    clear = expected.margin > ROUNDING
    np.testing.assert_array_equal(match.numpy()[clear], expected.match[clear])
    if expected.anchor_margin > ROUNDING:
        assert anchor == reference(tokens, grid, window).anchor


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plan_keeps_exactly_what_the_plain_loops_keep(threshold, dtype, form_name):
    grid = TokenGrid(5, 4, 7)
    tokens = video(grid, 24, dtype=dtype, seed=3)
    form = form_of(form_name, tokens)
    expected = reference(tokens, grid, 3)
    assert np.abs(expected.best - threshold).min() > ROUNDING
    plan = plan_ttf(tokens, grid, FusionConfig(threshold=threshold), form=form)
    kept = expected.best <= threshold
    assert plan.anchor_frame == expected.anchor
    assert plan.keep_index.tolist() == np.flatnonzero(kept).tolist()
    assert (
        plan.match_index.tolist()
        == np.where(kept, np.arange(grid.num_tokens), expected.match).tolist()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_decision_flips_at_thresholds_close_to_actual_scores(dtype, form_name):
    grid = TokenGrid(6, 5, 5)
    tokens = video(grid, 48, dtype=dtype, seed=11)
    form = form_of(form_name, tokens)
    expected = reference(tokens, grid, 3)
    scores = expected.best[np.isfinite(expected.best)]
    for score, side in itertools.product(scores[::5], (-1e-5, 1e-5)):
        threshold = score + side
        if np.abs(scores - threshold).min() < 0.5e-5:
            continue
        plan = plan_ttf(tokens, grid, FusionConfig(threshold=threshold), form=form)
        assert plan.keep_index.tolist() == np.flatnonzero(expected.best <= threshold).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_tokens_within_2e_6_of_200_thresholds_on_scores_may_flip(dtype, form_name):
    grid = TokenGrid(12, 8, 8)
    tokens = video(grid, 2048, dtype=dtype, seed=5)
    form = form_of(form_name, tokens)
    best, _ = best_match(tokens, grid, [Shot(0, grid.frames, 4)], window=3, form=form)
    exact = exact_cosines(tokens, grid, anchor=4)
    others = best.isfinite()
    scores = exact[others].sort().values
    flips = 0
    for threshold in scores[:: max(1, len(scores) // 200)][:200] + 1e-12:
        flipped = (best[others] > threshold.float()) != (exact[others] > threshold)
        assert ((exact[others] - threshold).abs()[flipped] <= ROUNDING).all()
        flips += int(flipped.sum())
    assert flips < 200


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_channels", [17, 64, 1000, 1024])
@pytest.mark.parametrize("sides", [(3, 1, 5), (9, 7, 5), (33, 6, 6)])
def test_repeated_frames_pick_the_earliest_anchor_and_score_alike(
    sides, num_channels, dtype, form_name
):
    grid = TokenGrid(*sides)
    frame = torch.randn(grid.tokens_per_frame, num_channels, generator=seeded(1)).to(dtype)
    tokens = frame.repeat(grid.frames, 1)
    form = form_of(form_name, tokens)
    plan = plan_ttf(tokens, grid, FusionConfig(budget=1.0), form=form)
    score = plan.score.view(grid.frames, grid.tokens_per_frame)
    assert plan.anchor_frame == 0
    assert (score[1:] == score[1]).all()
    _, match = best_match(tokens, grid, [Shot(0, grid.frames, 0)], window=3, form=form)
    assert match.tolist() == list(range(grid.tokens_per_frame)) * grid.frames


@pytest.mark.parametrize("window", [1, 3, 5, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicated_tokens_match_the_earliest_place_of_the_window(window, dtype, form_name):
    grid = TokenGrid(4, 6, 5)
    few = torch.randn(3, 64, generator=seeded(2)).to(dtype)
    tokens = few[torch.randint(0, 3, (grid.num_tokens,), generator=seeded(3))]
    form = form_of(form_name, tokens)
    anchor = select_anchor(tokens, grid, form=form)
    _, match = best_match(tokens, grid, [Shot(0, grid.frames, anchor)], window=window, form=form)
    expected = reference(tokens, grid, window, anchor=anchor)
    certain = (expected.margin > ROUNDING) | (expected.margin == 0)
    assert certain.mean() > 0.9
    assert match.numpy()[certain].tolist() == expected.match[certain].tolist()


def test_exact_ties_between_whole_numbers_are_those_of_the_plain_loops(form_name):
    grid = TokenGrid(5, 5, 6)
    tokens = torch.randint(-1, 2, (grid.num_tokens, 4), generator=seeded(4)).float()
    form = form_of(form_name, tokens)
    anchor = select_anchor(tokens, grid, form=form)
    best, match = best_match(tokens, grid, [Shot(0, grid.frames, anchor)], window=3, form=form)
    expected = reference(tokens, grid, 3, anchor=anchor)
    others = np.isfinite(expected.best)
    np.testing.assert_allclose(best.numpy()[others], expected.best[others], atol=1e-6)
    chosen = [
        cosine(tokens[i].double().numpy(), tokens[j].double().numpy())
        for i, j in enumerate(match.tolist())
    ]
    np.testing.assert_allclose(np.array(chosen)[others], expected.best[others], atol=1e-12)


def test_zero_vectors_have_cosine_zero_with_everything(form_name):
    grid = TokenGrid(3, 2, 2)
    tokens = torch.zeros(grid.num_tokens, 8)
    form = form_of(form_name, tokens)
    best, match = best_match(tokens, grid, [Shot(0, grid.frames, 0)], window=3, form=form)
    assert best[4:].tolist() == [0.0] * 8
    assert match[4:].tolist() == [0] * 8
    assert plan_ttf(tokens, grid, FusionConfig(threshold=0.0), form=form).num_kept == 12
    below = plan_ttf(tokens, grid, FusionConfig(threshold=-0.1), form=form)
    assert (below.anchor_frame, below.num_kept) == (0, 4)


def test_a_cosine_equal_to_the_threshold_keeps_the_token(form_name):
    grid = TokenGrid(3, 1, 1)
    tokens = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]])
    form = form_of(form_name, tokens)
    best, _ = best_match(tokens, grid, [Shot(0, grid.frames, 0)], window=1, form=form)
    assert best[2].item() == 0.5
    assert 2 in plan_ttf(tokens, grid, FusionConfig(threshold=0.5), form=form).keep_index
    assert 2 not in plan_ttf(tokens, grid, FusionConfig(threshold=0.4999), form=form).keep_index


def test_one_frame_is_its_own_anchor_and_kept_whole():
    grid = TokenGrid(1, 3, 4)
    plan = plan_fusion(video(grid, 16), grid, FusionConfig(threshold=-0.9))
    assert plan.anchor_frame == 0
    assert plan.keep_ratio == 1.0
    assert plan.score.tolist() == [-torch.inf] * 12


def test_plan_does_not_depend_on_the_number_of_threads(form_name):
    grid = TokenGrid(19, 7, 9)
    tokens = video(grid, 256, dtype=torch.bfloat16)
    form = form_of(form_name, tokens)
    before = torch.get_num_threads()
    plans = []
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            plans.append(plan_ttf(tokens, grid, FusionConfig(), form=form))
    finally:
        torch.set_num_threads(before)
    assert len({plan_bytes(plan) for plan in plans}) == 1


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_speed_settings_of_the_process_neither_matter_nor_change(precision):
    grid = TokenGrid(6, 4, 4)
    tokens = video(grid, 64)
    expected = plan_bytes(plan_fusion(tokens, grid, FusionConfig()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu"):
            found = plan_bytes(plan_fusion(tokens, grid, FusionConfig()))
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == expected


def test_a_view_into_wider_rows_gives_the_plan_of_its_copy():
    grid = TokenGrid(6, 4, 4)
    wide = torch.cat([video(grid, 64), torch.randn(grid.num_tokens, 192)], dim=1)
    view = plan_fusion(wide[:, :64], grid, FusionConfig())
    copy = plan_fusion(wide[:, :64].contiguous(), grid, FusionConfig())
    assert plan_bytes(view) == plan_bytes(copy)


def test_tokens_that_require_grad_are_planned_without_a_graph():
    grid = TokenGrid(3, 2, 2)
    plan = plan_fusion(video(grid, 8).requires_grad_(), grid, FusionConfig())
    assert not plan.score.requires_grad


@pytest.mark.parametrize("budget", [12, 13, 30, 59, 60, 1000, 0.2, 0.5, 1.0])
def test_budget_is_kept_exactly_anchors_first_then_smallest_scores(budget):
    grid = TokenGrid(5, 3, 4)
    tokens = video(grid, 32)
    everything = plan_fusion(tokens, grid, FusionConfig(budget=1.0))
    plan = plan_fusion(tokens, grid, FusionConfig(budget=budget, threshold=0.1))
    wanted = min(60, budget if isinstance(budget, int) else int(budget * 60))
    assert plan.num_kept == wanted
    assert plan.storage_index.tolist() == everything.storage_index[:wanted].tolist()
    assert plan.storage_index[:12].tolist() == [plan.anchor_frame * 12 + n for n in range(12)]


def test_budget_below_the_anchor_frame_names_the_smallest_possible_one():
    grid = TokenGrid(5, 3, 4)
    with pytest.raises(FusionError, match="at least 12 tokens"):
        plan_fusion(video(grid, 32), grid, FusionConfig(budget=11))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["ttf", "none", "uniform", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_not_finite_are_refused_with_their_frame(value, method, dtype):
    grid = TokenGrid(4, 3, 3)
    tokens = video(grid, 8, dtype=dtype)
    tokens[2 * 9 + 5, 3] = value
    with pytest.raises(FusionError, match="token frame 2 of grid 4x3x3"):
        plan_fusion(tokens, grid, FusionConfig(method=method))


def test_tokens_whose_norm_overflows_float32_are_refused():
    grid = TokenGrid(2, 1, 2)
    with pytest.raises(FusionError, match="too large"):
        plan_fusion(torch.full((4, 8), 1e25), grid, FusionConfig())


def test_wrong_shapes_and_types_are_refused():
    grid = TokenGrid(2, 2, 2)
    with pytest.raises(GridMismatchError, match="found 7 visual tokens"):
        plan_fusion(torch.ones(7, 4), grid, FusionConfig())
    for shape in ((8,), (2, 4, 4), (8, 0)):
        with pytest.raises(GridMismatchError, match=r"expected \(8, D\)"):
            plan_fusion(torch.ones(shape), grid, FusionConfig())
    with pytest.raises(FusionError, match=r"torch\.int64"):
        plan_fusion(torch.ones(8, 4, dtype=torch.int64), grid, FusionConfig())
