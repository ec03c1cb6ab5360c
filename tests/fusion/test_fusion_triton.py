"""The Triton kernels against float64 and the torch form.

Triton chooses between its interpreter and a GPU when it is imported, so kernels run in a process of
their own. This file is the program of that process too.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; it has wheels for Linux only")

import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.fusion import window, window_triton
from pipeline.fusion.forms import TORCH, compiled_form
from pipeline.fusion.ttf import plan_ttf
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

pytestmark = pytest.mark.slow

ROUNDING = 2e-6
EPSILON = 1e-12
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    frames: int
    height: int
    width: int
    num_channels: int
    window: int = 3
    dtype: torch.dtype = F32
    content: str = "video"

    @property
    def grid(self):
        return TokenGrid(self.frames, self.height, self.width)

    @property
    def name(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.grid}x{self.num_channels}-w{self.window}-{dtype}-{self.content}"

    @property
    def tokens(self):
        return CONTENTS[self.content](self).to(self.dtype)

    def plane_of(self, tokens):
        frames_TND = tokens.view(self.frames, self.grid.tokens_per_frame, -1)
        return frames_TND[self.frames // 2]


def video(case, *, scale=1.0):
    """Frames that resemble each other more or less, on top of a common background."""
    generator = torch.Generator().manual_seed(case.num_channels + case.width)
    cells, channels = case.grid.tokens_per_frame, case.num_channels
    background = torch.randn(1, cells, channels, generator=generator)
    change = torch.randn(case.frames, cells, channels, generator=generator)
    amount = 1.6 * torch.rand(case.frames, cells, 1, generator=generator)
    return (background + amount * change + 0.1).flatten(0, 1) * scale


def one_hot(case):
    """Tokens of three kinds in turn: a cosine is exactly 0 or 1, and most are ties."""
    kinds = torch.arange(case.grid.num_tokens) * 7 // 3 % 3
    return torch.nn.functional.one_hot(kinds, case.num_channels)


def with_value(value):
    def content(case):
        tokens = video(case)
        tokens[-2, 1] = value
        return tokens

    return content


CONTENTS = {
    "video": video,
    "large": lambda case: video(case, scale=1e17),
    "equal": lambda case: torch.ones(case.grid.num_tokens, case.num_channels),
    "zero": lambda case: torch.zeros(case.grid.num_tokens, case.num_channels),
    "one_hot": one_hot,
    "nan": with_value(torch.nan),
    "infinite": with_value(torch.inf),
    "overflowing": with_value(1e30),
}

VIDEOS = [
    Case(4, 3, 5, 32),
    Case(2, 14, 14, 64, dtype=BF16),
    Case(3, 7, 33, 48, window=5, dtype=F16),
    Case(1, 1, 1, 33, window=7, dtype=BF16),
    Case(1, 6, 6, 40, dtype=F16),
    Case(3, 1, 70, 33, window=7),
    Case(2, 9, 4, 16, window=7, dtype=BF16),
    Case(9, 2, 3, 7, window=5),
    Case(3, 2, 130, 40, window=1),
    Case(2, 3, 64, 24, dtype=BF16),
    Case(1, 10, 11, 16, window=9),
    Case(32, 14, 14, 16, dtype=BF16),
    Case(2, 2, 4, 4096),
    Case(3, 3, 4, 16, content="large"),
]
TIES = [
    Case(3, 4, 9, 17, content="equal"),
    Case(2, 5, 23, 17, window=5, content="equal", dtype=BF16),
    Case(2, 5, 6, 8, window=5, content="zero"),
    Case(4, 6, 7, 16, content="one_hot", dtype=BF16),
    Case(3, 5, 11, 16, window=7, content="one_hot"),
]
BROKEN = [
    Case(3, 4, 5, 16, content="nan", dtype=BF16),
    Case(3, 4, 5, 16, content="infinite"),
    Case(3, 4, 5, 16, content="overflowing"),
]
PLANNED = Case(6, 5, 8, 32, dtype=BF16)


def main(device):
    """Run all cases with the Triton form on ``device`` and print what it found."""
    found = {case.name: run(case, device) for case in VIDEOS + TIES + BROKEN}
    found["plan"] = planned(PLANNED.tokens.to(device), compiled_form("triton"))
    found["runs"] = window_triton.runs_on(torch.device(device))
    found["reads"] = window_triton.reads(PLANNED.tokens.to(device))
    again = run(VIDEOS[1], device)
    found["repeats"] = again == found[VIDEOS[1].name]
    json.dump(found, sys.stdout)


def run(case, device):
    tokens = case.tokens.to(device)
    try:
        best, cell = window_triton.match_plane(
            tokens, case.plane_of(tokens), case.grid, window=case.window
        )
    except FusionError as error:
        return {"error": str(error)}
    sums = window_triton.frame_sums(tokens, case.grid)
    return {"best": best.tolist(), "cell": cell.tolist(), "sums": sums.tolist()}


def planned(tokens, form):
    plan = plan_ttf(tokens, PLANNED.grid, FusionConfig(threshold=0.6), form=form)
    return {
        "anchor": plan.anchor_frame,
        "kept": plan.keep_index.tolist(),
        "match": plan.match_index.tolist(),
    }


@pytest.fixture(scope="module", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def found(request):
    """What the program above printed: in the interpreter, and on a GPU where there is one."""
    device = request.param
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
    }
    child = subprocess.run(
        [sys.executable, __file__, device], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout) | {"device": device}


def in_cases(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def reference(case):
    """Greatest cosine, its earliest cell and its margin, by the rule and in float64."""
    tokens, grid, half = case.tokens, case.grid, case.window // 2
    frames = tokens.double().numpy().reshape(grid.frames, grid.height, grid.width, -1)
    plane = case.plane_of(tokens).double().numpy().reshape(frames.shape[1:])
    norm = np.maximum(np.linalg.norm(frames, axis=-1), EPSILON)
    plane_norm = np.maximum(np.linalg.norm(plane, axis=-1), EPSILON)
    best = np.full(norm.shape, -np.inf)
    cell = np.zeros(norm.shape, dtype=np.int64)
    margin = np.full(norm.shape, np.inf)
    for y, x in np.ndindex(grid.height, grid.width):
        for v in range(max(0, y - half), min(grid.height, y + half + 1)):
            for u in range(max(0, x - half), min(grid.width, x + half + 1)):
                value = frames[:, y, x] @ plane[v, u] / norm[:, y, x] / plane_norm[v, u]
                difference = value - best[:, y, x]
                margin[:, y, x] = np.where(
                    difference > 0, difference, np.minimum(margin[:, y, x], -difference)
                )
                cell[:, y, x] = np.where(difference > 0, v * grid.width + u, cell[:, y, x])
                best[:, y, x] = np.maximum(best[:, y, x], value)
    shape = (grid.frames, grid.tokens_per_frame)
    return best.reshape(shape), cell.reshape(shape), margin.reshape(shape)


@in_cases(VIDEOS)
def test_cosines_and_cells_are_those_of_float64_and_of_the_torch_form(case, found):
    result = found[case.name]
    best, cell, margin = reference(case)
    np.testing.assert_allclose(result["best"], best, atol=ROUNDING / 2, rtol=0)
    clear = margin > ROUNDING
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.array(result["cell"])[clear], cell[clear])
    tokens = case.tokens
    torch_best, torch_cell = window.match_plane(
        tokens, case.plane_of(tokens), case.grid, window=case.window
    )
    np.testing.assert_allclose(result["best"], torch_best.numpy(), atol=ROUNDING, rtol=0)
    np.testing.assert_array_equal(np.array(result["cell"])[clear], torch_cell.numpy()[clear])


@in_cases(TIES)
def test_the_earliest_of_equal_places_is_named(case, found):
    result = found[case.name]
    best, cell, margin = reference(case)
    assert (margin == 0).mean() > 0.5
    np.testing.assert_array_equal(result["cell"], cell)
    np.testing.assert_allclose(result["best"], best, atol=ROUNDING / 2, rtol=0)


def test_equal_tokens_name_the_upper_left_corner_of_the_clipped_window(found):
    cells = found[TIES[0].name]["cell"]
    assert cells[0] == cells[2]
    assert cells[0] == [
        *(0, 0, 1, 2, 3, 4, 5, 6, 7),
        *(0, 0, 1, 2, 3, 4, 5, 6, 7),
        *(9, 9, 10, 11, 12, 13, 14, 15, 16),
        *(18, 18, 19, 20, 21, 22, 23, 24, 25),
    ]


@in_cases(BROKEN)
def test_tokens_without_a_finite_norm_raise_the_torch_forms_error(case, found):
    tokens = case.tokens
    with pytest.raises(FusionError) as expected:
        window.match_plane(tokens, case.plane_of(tokens), case.grid, window=case.window)
    assert found[case.name] == {"error": str(expected.value)}


@in_cases(VIDEOS)
def test_frame_sums_are_those_of_float64(case, found):
    values = case.tokens.double().view(case.frames, -1, case.num_channels)
    error = (torch.tensor(found[case.name]["sums"], dtype=torch.float64) - values.sum(dim=1)).abs()
    assert (error <= 2e-7 * values.abs().sum(dim=1)).all()


def test_a_plan_is_the_torch_forms_plan(found):
    plan = planned(PLANNED.tokens, TORCH)
    assert 0.3 < len(plan["kept"]) / PLANNED.grid.num_tokens < 0.9
    assert found["plan"] == plan


def test_tokens_are_read_on_a_gpu_only(found):
    assert found["runs"]
    assert found["reads"] == (found["device"] == "cuda")


def test_where_triton_cannot_start_a_kernel_a_warning_says_what_to_do():
    with pytest.warns(RuntimeWarning, match="Install a C compiler"):
        assert not window_triton.runs_on(torch.device("cpu"))


def test_a_second_run_gives_the_same_bits(found):
    assert found["repeats"]


@given(
    grid=st.builds(TokenGrid, st.integers(1, 200), st.integers(1, 40), st.integers(1, 200)),
    window=st.sampled_from([1, 3, 5, 7]),
)
def test_every_layout_covers_the_grid_and_fits_the_products(grid, window):
    layout = window_triton.layout_of(grid, window)
    num_spans = -(-grid.width // layout.span)
    assert layout.num_programs == num_spans * grid.height * -(-grid.frames // layout.frames)
    assert (num_spans - 1) * layout.span < grid.width
    assert layout.frames * layout.span <= layout.num_tokens <= 64
    places = min(window, grid.height) * min(layout.span + window - 1, grid.width)
    assert places <= layout.num_places <= 64
    assert {layout.num_tokens, layout.num_places} <= {16, 32, 64}


@pytest.mark.parametrize(
    ("grid", "num_tokens"),
    [(TokenGrid(32, 14, 14), 64), (TokenGrid(16, 14, 14), 32), (TokenGrid(4, 14, 14), 16)],
    ids=str,
)
def test_fewer_tokens_make_smaller_blocks(grid, num_tokens):
    assert window_triton.layout_of(grid, 3).num_tokens == num_tokens


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_kernels_compile_without_spills_chains_tf32_or_atomics(
    dtype, capability, tmp_path, monkeypatch, capfd
):
    layout = window_triton.layout_of(TokenGrid(32, 14, 14), 3)
    operand = {"bf16": tl.bfloat16, "fp32": tl.float32}[dtype]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    match = compile_for(
        capability,
        window_triton._match_tokens,
        {"tokens": dtype, "plane": dtype, "cells": "i64"}
        | dict.fromkeys(("plane_norms", "bests", "norms"), "fp32"),
        {
            "TOKENS": layout.num_tokens,
            "PLACES": layout.num_places,
            "CHANNELS": window_triton._ROW_BYTES * 8 // operand.primitive_bitwidth,
            "OPERAND": operand,
        },
        num_stages=window_triton._STAGES,
        enable_fp_fusion=True,
    )
    sums = compile_for(
        capability,
        window_triton._sum_frame,
        {"tokens": dtype, "sums": "fp32"},
        {"CELLS": window_triton._SUMMED_CELLS, "CHANNELS": window_triton._SUMMED_CHANNELS},
        enable_fp_fusion=True,
    )
    spills = re.findall(
        r"(\d+) bytes spill stores, (\d+) bytes spill loads", capfd.readouterr().out
    )
    assert spills == [("0", "0")] * 2
    accumulator = re.search(r"tt\.dot \S+, \S+, (%\w+)", match.asm["ttir"]).group(1)
    assert f"{accumulator} = arith.constant dense<0.0" in match.asm["ttir"]
    assert ("mma" in match.asm["ptx"]) == (dtype == "bf16")
    assert "tf32" not in match.asm["ptx"]
    assert "atom" not in match.asm["ptx"] + sums.asm["ptx"]
    kibibytes, programs = {80: (164, 2), 90: (228, 3)}[capability]
    assert programs * (match.metadata.shared / 1024 + 1) <= kibibytes


def compile_for(capability, kernel, pointers, constants, **options):
    """Compile as for contiguous tokens of a model: aligned, channels a multiple of 16."""
    signature = dict.fromkeys(kernel.arg_names, "i32")
    signature |= {name: f"*{dtype}" for name, dtype in pointers.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [kernel.arg_names.index(name) for name in (*pointers, "num_channels")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


if __name__ == "__main__":
    main(sys.argv[1])
