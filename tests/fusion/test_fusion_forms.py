"""The compiled form decides as plain torch does, and is taken where it is installed."""

import subprocess
import sys

import pytest
import torch

from pipeline.fusion import plan_fusion
from pipeline.fusion.anchor import select_anchor
from pipeline.fusion.forms import TORCH, compiled_form, form_for
from pipeline.fusion.ttf import Shot, best_match, plan_ttf
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.plain_ttf import ROUNDING, plan_bytes, seeded, video

NUMBA = compiled_form("numba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 7, 8, 9, 33])
@pytest.mark.parametrize("window", [1, 3, 5, 7])
def test_both_forms_give_the_same_plan_where_no_cosine_is_near_the_threshold(
    num_frames, window, dtype
):
    grid = TokenGrid(num_frames, 5, 6)
    tokens = video(grid, 96, dtype=dtype, seed=num_frames)
    shots = [Shot(0, num_frames, select_anchor(tokens, grid, form=TORCH))]
    best, _ = best_match(tokens, grid, shots, window=window, form=TORCH)
    config = FusionConfig(threshold=widest_gap(best), window=window)
    assert (best - config.threshold).abs().min() > ROUNDING
    one, other = (plan_ttf(tokens, grid, config, form=form) for form in (TORCH, NUMBA))
    assert one.keep_index.tolist() == other.keep_index.tolist()
    assert one.match_index.tolist() == other.match_index.tolist()
    torch.testing.assert_close(one.score, other.score, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_find_the_same_anchor_among_nearly_equal_frames(dtype):
    grid = TokenGrid(24, 6, 6)
    frame = torch.randn(36, 512, generator=seeded(0))
    for seed in range(20):
        noise = torch.randn(grid.num_tokens, 512, generator=seeded(seed + 1))
        tokens = (frame.repeat(24, 1) + 2e-3 * noise).to(dtype)
        assert select_anchor(tokens, grid, form=TORCH) == select_anchor(tokens, grid, form=NUMBA)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_compiled_form_sums_frames_as_torch_does(num_threads):
    grid = TokenGrid(5, 3, 7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        for dtype in (torch.float32, torch.bfloat16):
            tokens = video(grid, 130, dtype=dtype)
            exact = tokens.double().view(5, 21, -1).sum(1)
            torch.testing.assert_close(
                NUMBA.frame_sums(tokens, grid).double(), exact, atol=1e-5, rtol=0
            )
    finally:
        torch.set_num_threads(before)


def test_float32_and_pairs_of_bfloat16_take_the_compiled_form_and_all_else_plain_torch():
    assert form_for(torch.ones(4, 5)) == NUMBA
    assert form_for(torch.ones(4, 6, dtype=torch.bfloat16)) == NUMBA
    assert form_for(torch.ones(4, 5, dtype=torch.bfloat16)) == TORCH
    assert form_for(torch.ones(4, 6, dtype=torch.float16)) == TORCH
    assert form_for(torch.ones(4, 6, dtype=torch.float64)) == TORCH


def test_bfloat16_rows_that_begin_at_an_odd_place_are_planned_all_the_same():
    grid = TokenGrid(4, 3, 3)
    tokens = video(grid, 32, dtype=torch.bfloat16)
    shifted = torch.empty(tokens.numel() + 1, dtype=torch.bfloat16)[1:].view_as(tokens)
    shifted.copy_(tokens)
    found = plan_fusion(shifted, grid, FusionConfig())
    assert (
        found.keep_index.tolist() == plan_fusion(tokens, grid, FusionConfig()).keep_index.tolist()
    )


def test_the_compiled_form_gives_the_same_bytes_again_and_on_any_thread():
    grid = TokenGrid(9, 6, 5)
    tokens = video(grid, 64, dtype=torch.bfloat16)
    config = FusionConfig()
    assert plan_bytes(plan_ttf(tokens, grid, config, form=NUMBA)) == plan_bytes(
        plan_ttf(tokens.clone(), grid, config, form=NUMBA)
    )


def test_without_numba_plain_torch_is_taken():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from pipeline.fusion.forms import TORCH, form_for\n"
        "assert form_for(torch.ones(4, 4)) == TORCH"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def widest_gap(scores):
    """The middle of the widest gap between scores that are far from both ends."""
    ranked = scores[scores.isfinite()].sort().values
    middle = ranked[len(ranked) // 4 : 1 + 3 * len(ranked) // 4]
    if len(middle) < 2:
        return 0.6
    place = int(middle.diff().argmax())
    return float(middle[place : place + 2].mean())
