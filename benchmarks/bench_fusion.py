"""TTF on one CPU thread against copying the same bytes: `python benchmarks/bench_fusion.py`.

Prints Markdown. The forms are timed in turn within one run and compared as medians of wall time;
each timed form is checked against float64 before its time counts. The allocator is told to keep
memory (the script starts itself again with that setting), so that nobody's temporaries cost page
faults. At D=1024 the tokens fit into a large cache: bars are set at D=4096 only.
"""

import datetime as dt
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fusion_cases import (
    Step,
    evs_mask,
    exact_anchor,
    exact_cosines,
    framefusion_scores,
    synthetic_tokens,
)
from pipeline.fusion.anchor import select_anchor
from pipeline.fusion.forms import TORCH, Form, compiled_form
from pipeline.fusion.ttf import Shot, best_match, plan_ttf
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

GRID = TokenGrid(32, 14, 14)
CONFIG = FusionConfig()
ROUNDS = 15
ROUNDING = 2e-6
NUM_THRESHOLDS = 200
BARS = {
    ("torch", torch.float32): 6.0,
    ("torch", torch.bfloat16): 10.0,
    ("numba", torch.float32): 3.0,
    ("numba", torch.bfloat16): 3.5,
}
"""Whole plan / memcpy at most, at D=4096."""

PEER_BARS = {"evs": 1.8, "framefusion": 3.0}
"""Peer / whole plan of the compiled form at least, at D=4096."""

LENGTHS = (32, 128, 512, 2048)
MEMORY_BAR = 0.05
LINEAR_BAR = 1.25
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**36)}


def check(tokens: torch.Tensor, form: Form) -> tuple[float, int]:
    """Greatest error of a score, and decisions unlike float64's; raises if any is not a near one.

    Thresholds are placed on 200 actual scores.
    """
    anchor = exact_anchor(tokens, GRID)
    exact = exact_cosines(tokens, GRID, anchor)
    best, _ = best_match(tokens, GRID, [Shot(0, GRID.frames, anchor)], window=3, form=form)
    others = best.isfinite()
    best, exact = best[others], exact[others]
    error = float((best - exact).abs().max())
    ranked = exact.sort().values
    flips = 0
    for threshold in ranked[:: len(ranked) // NUM_THRESHOLDS][:NUM_THRESHOLDS] + 1e-12:
        flipped = (best > threshold.float()) != (exact > threshold)
        flips += int(flipped.sum())
        if ((exact - threshold).abs()[flipped] > ROUNDING).any():
            raise SystemExit(f"{form.name}: a token further than {ROUNDING} changed sides")
    if select_anchor(tokens, GRID, form=form) != anchor or error > ROUNDING:
        raise SystemExit(f"{form.name}: not equal to float64, error {error:.1e}")
    return error, flips


def median_seconds(steps: dict[str, Step], rounds: int = ROUNDS) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def speed_rows(num_channels: int, dtype: torch.dtype, forms: list[Form]) -> bool:
    """Print a row per form; whether all bars hold."""
    tokens = synthetic_tokens(GRID, num_channels, dtype)
    room = torch.empty_like(tokens)
    checked = {form.name: check(tokens, form) for form in forms}
    whole = [Shot(0, GRID.frames, exact_anchor(tokens, GRID))]
    steps: dict[str, Step] = {
        "memcpy": lambda: room.copy_(tokens),
        "evs": lambda: evs_mask(tokens, GRID, 0.3),
        "framefusion": lambda: framefusion_scores(tokens, GRID),
    }
    for form in forms:
        steps |= {
            f"{form.name} anchor": partial(select_anchor, tokens, GRID, form=form),
            f"{form.name} match": partial(best_match, tokens, GRID, whole, window=3, form=form),
            f"{form.name} plan": partial(plan_ttf, tokens, GRID, CONFIG, form=form),
        }
    took = median_seconds(steps)
    holds = True
    for form in forms:
        copies = {name: took[f"{form.name} {name}"] for name in ("anchor", "match", "plan")}
        ratio = copies["plan"] / took["memcpy"]
        peers = {peer: took[peer] / copies["plan"] for peer in PEER_BARS}
        bar, is_barred = "-", num_channels == 4096
        if is_barred:
            bar = f"<= {BARS[form.name, dtype]:g}x"
            holds = holds and ratio <= BARS[form.name, dtype]
            if form.name == "numba":
                bar += "".join(f", >= {least:g}x {peer}" for peer, least in PEER_BARS.items())
                holds = holds and all(peers[peer] >= least for peer, least in PEER_BARS.items())
        cells = [
            str(num_channels),
            str(dtype).removeprefix("torch."),
            form.name,
            f"{took['memcpy'] * 1e3:.1f}",
            *(f"{seconds * 1e3:.1f}" for seconds in copies.values()),
            f"{ratio:.1f}x",
            *(f"{took[peer] * 1e3:.0f} ({peers[peer]:.1f}x)" for peer in PEER_BARS),
            bar,
            f"{checked[form.name][0]:.1e}",
            f"{checked[form.name][1]}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    return holds


def length_rows(form: Form) -> bool:
    """Print time and memory of a plan over the number of frames; whether they stay linear."""
    holds, first = True, None
    for num_frames in LENGTHS:
        grid = TokenGrid(num_frames, GRID.height, GRID.width)
        tokens = synthetic_tokens(grid, 4096, torch.bfloat16)
        took = median_seconds({"plan": partial(plan_ttf, tokens, grid, CONFIG, form=form)}, 5)
        extra = extra_bytes(form.name, num_frames) / (tokens.numel() * 2)
        each = took["plan"] / num_frames
        first = first or each
        holds = holds and each <= LINEAR_BAR * first and extra <= MEMORY_BAR
        print(
            f"| {form.name} | {num_frames} | {tokens.numel() * 2 / 2**20:.0f} | "
            f"{took['plan'] * 1e3:.0f} | {each * 1e3:.2f} | {each / first:.2f}x | {extra:.1%} |",
            flush=True,
        )
    return holds


def extra_bytes(form_name: str, num_frames: int) -> int:
    """Memory that a plan takes beside its tokens, at its peak, in a process that gives all back."""
    child = subprocess.run(
        [sys.executable, __file__, "--extra-bytes", form_name, str(num_frames)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(child.stdout)


def print_extra_bytes(form_name: str, num_frames: int) -> None:
    torch.set_num_threads(1)
    form = TORCH if form_name == "torch" else compiled_form(form_name)
    assert form, f"{form_name} is not installed"
    grid = TokenGrid(num_frames, GRID.height, GRID.width)
    warm = TokenGrid(8, GRID.height, GRID.width)
    plan_ttf(synthetic_tokens(warm, 4096, torch.bfloat16), warm, CONFIG, form=form)
    tokens = synthetic_tokens(grid, 4096, torch.bfloat16)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status_bytes("VmRSS")
    plan = plan_ttf(tokens, grid, CONFIG, form=form)
    assert plan.num_kept
    print(status_bytes("VmHWM") - before)


def status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def main() -> int:
    torch.set_num_threads(1)
    forms = [form for form in (TORCH, compiled_form("numba")) if form]
    print(f"TTF, grid {GRID}, window {CONFIG.window}, threshold {CONFIG.fuses_above}")
    print(f"- command: `python benchmarks/bench_fusion.py`, {dt.date.today()}")
    print(f"- machine: {cpu_name()}, {os.cpu_count()} cores, 1 thread; torch {torch.__version__}")
    print(f"- wall medians of {ROUNDS} interleaved rounds, ms; plan/copy: x memcpy of the tokens")
    print(
        "- EVS, FrameFusion: their step as their authors order it, and how often our plan fits in"
    )
    print(f"- flips: decisions unlike float64's in {NUM_THRESHOLDS} thresholds put on scores\n")
    print(
        "| D | dtype | form | memcpy | anchor | match | plan | plan/copy | EVS | FrameFusion |",
        end="",
    )
    print(" bars | error | flips |\n|-:|:-|:-|-:|-:|-:|-:|-:|-:|-:|:-|-:|-:|")
    holds = True
    for num_channels in (1024, 2048, 4096):
        for dtype in (torch.float32, torch.bfloat16):
            holds = speed_rows(num_channels, dtype, forms) and holds
    print("\nLength, D=4096 bfloat16; extra memory of one plan over the bytes of the tokens\n")
    print("| form | T | tokens MiB | plan ms | ms/frame | x T=32 | extra memory |")
    print("|:-|-:|-:|-:|-:|-:|-:|")
    for form in forms:
        holds = length_rows(form) and holds
    print(f"\nEvery bar holds: {'yes' if holds else 'NO'}")
    return 0 if holds else 1


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--extra-bytes"]:
        print_extra_bytes(sys.argv[2], int(sys.argv[3]))
        sys.exit()
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    sys.exit(main())
