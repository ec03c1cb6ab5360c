"""The compiled form decides as plain torch does, and is taken where it is installed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.fusion import plan_fusion
from pipeline.fusion.anchor import select_anchor
from pipeline.fusion.forms import TORCH, compiled_form, form_for
from pipeline.fusion.ttf import Shot, best_match, plan_ttf
from schemas.fusion import METHODS, FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import ROUNDING, plan_bytes, seeded, video
from tests.synthetic import REPOSITORY

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


def test_the_compiled_form_gives_the_same_bytes_again():
    grid = TokenGrid(9, 6, 5)
    tokens = video(grid, 64, dtype=torch.bfloat16)
    config = FusionConfig()
    assert plan_bytes(plan_ttf(tokens, grid, config, form=NUMBA)) == plan_bytes(
        plan_ttf(tokens.clone(), grid, config, form=NUMBA)
    )


@pytest.mark.slow
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


PLAN = """
import torch
from pipeline.fusion import plan_fusion
from pipeline.fusion.forms import form_for
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
tokens = torch.randn(4 * 9, 32, generator=torch.Generator().manual_seed(0))
plan = plan_fusion(tokens, TokenGrid(4, 3, 3), FusionConfig(threshold=0.2))
print(form_for(tokens).name, plan.keep_index.tolist())
"""


def planned(tmp_path, **environment):
    """Form and kept tokens of one plan in a process of its own, and what it warned of."""
    child = subprocess.run(
        [sys.executable, "-c", PLAN],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    name, kept = child.stdout.split(maxsplit=1)
    return name, kept, child.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_a_compilation_and_nothing_else(tmp_path):
    (tmp_path / "file").touch()
    right = planned(tmp_path)
    found = planned(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert found[:2] == right[:2]
    assert found[0] == "numba"


@pytest.mark.slow
def test_a_damaged_cache_or_a_broken_library_is_said_and_torch_is_taken(tmp_path):
    right = planned(tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    for compiled in tmp_path.rglob("*.nbc"):
        compiled.write_bytes(compiled.read_bytes()[:100])
    damaged = planned(tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert damaged[:2] == ("torch", right[1])
    assert "numba cannot be used" in damaged[2]

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "numba.py").write_text("raise OSError('libLLVM is missing')")
    broken = planned(tmp_path, PYTHONPATH=f"{tmp_path / 'broken'}{os.pathsep}{REPOSITORY}")
    assert broken[:2] == ("torch", right[1])
    assert "libLLVM is missing" in broken[2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_type_of_the_process_decides_nothing(method, default):
    grid = TokenGrid(5, 4, 5)
    tokens = video(grid, 32, dtype=torch.bfloat16)
    right = plan_fusion(tokens, grid, FusionConfig(method=method))
    torch.set_default_dtype(default)
    try:
        found = plan_fusion(tokens, grid, FusionConfig(method=method))
    finally:
        torch.set_default_dtype(torch.float32)
    assert plan_bytes(found) == plan_bytes(right)


def test_threads_that_plan_at_once_get_the_plans_of_one_and_leave_the_settings_as_they_were():
    grid = TokenGrid(9, 6, 5)
    videos = [video(grid, 48, seed=seed) for seed in range(4)]
    methods = [name for name in METHODS if METHODS[name].budgeted]

    def plans(tokens):
        configs = [FusionConfig(method=name, budget=0.5) for name in methods]
        return [plan_bytes(plan_fusion(tokens, grid, config)) for config in configs]

    right = [plans(tokens) for tokens in videos]
    torch.set_float32_matmul_precision("high")
    before = precision_settings()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(plans, videos)) == right
        assert precision_settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def precision_settings():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return [backend.fp32_precision for backend in backends]
