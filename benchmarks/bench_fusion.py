"""TTF on one CPU thread against copying the same bytes: `python benchmarks/bench_fusion.py`.

Prints a Markdown table. The forms are timed in turn within one run and compared as medians of
wall time; each timed result is checked against float64 before its time counts. At D=1024 the
tokens fit into a large cache, so the bars are set at D=4096 only.
"""

import datetime as dt
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.fusion import plan_fusion
from pipeline.fusion.ttf import best_match, select_anchor
from schemas.config import FusionConfig
from schemas.grid import TokenGrid

GRID = TokenGrid(32, 14, 14)
CONFIG = FusionConfig()
ROUNDS = 15
ROUNDING = 2e-6
BARS = {(4096, torch.float32): 6.0, (4096, torch.bfloat16): 10.0}


def synthetic_tokens(num_channels: int, dtype: torch.dtype) -> torch.Tensor:
    """A background that stays, with more or less change on top: about half the tokens fuse."""
    generator = torch.Generator().manual_seed(0)
    background = torch.randn(1, GRID.tokens_per_frame, num_channels, generator=generator)
    change = torch.randn(GRID.frames, GRID.tokens_per_frame, num_channels, generator=generator)
    amount = torch.rand(GRID.frames, GRID.tokens_per_frame, 1, generator=generator) * 1.6
    return (background + amount * change).flatten(0, 1).to(dtype)


def exact_cosines(tokens: torch.Tensor, anchor: int) -> torch.Tensor:
    """Best cosine in the 3x3 window in float64, by shifting whole frames; the anchor included."""
    shape = (GRID.frames, GRID.height, GRID.width, -1)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1).view(shape)
    padded = torch.nn.functional.pad(unit[anchor], (0, 0, 1, 1, 1, 1))
    best = torch.full(shape[:3], -torch.inf, dtype=torch.float64)
    inside = torch.nn.functional.pad(torch.ones(GRID.height, GRID.width), (1, 1, 1, 1)).bool()
    for dy in range(3):
        for dx in range(3):
            window = (slice(dy, dy + GRID.height), slice(dx, dx + GRID.width))
            cosine = (unit * padded[window]).sum(-1)
            best = torch.maximum(best, cosine.masked_fill(~inside[window], -torch.inf))
    return best.flatten()


def exact_anchor(tokens: torch.Tensor) -> int:
    means = tokens.double().view(GRID.frames, GRID.tokens_per_frame, -1).mean(dim=1)
    return int(torch.cosine_similarity(means, means.mean(dim=0, keepdim=True)).argmax())


def check(tokens: torch.Tensor) -> float:
    """Greatest error of a score; raises unless every decision is that of float64."""
    plan = plan_fusion(tokens, GRID, CONFIG)
    best, _ = best_match(tokens, GRID, anchor=exact_anchor(tokens), window=CONFIG.window)
    exact = exact_cosines(tokens, exact_anchor(tokens))
    others = best.isfinite()
    error = float((best[others] - exact[others]).abs().max())
    is_kept = torch.zeros(GRID.num_tokens, dtype=torch.bool)
    is_kept[plan.keep_index] = True
    flipped = (is_kept != (exact <= CONFIG.threshold)) & others
    near = (exact - CONFIG.threshold).abs() <= ROUNDING
    if plan.anchor_frame != exact_anchor(tokens) or (flipped & ~near).any() or error > ROUNDING:
        raise SystemExit(f"not equal to float64: error {error:.1e}, {int(flipped.sum())} flips")
    return error


def median_seconds(forms: dict[str, Callable[[], object]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            started = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table_row(num_channels: int, dtype: torch.dtype) -> tuple[str, bool]:
    tokens = synthetic_tokens(num_channels, dtype)
    room = torch.empty_like(tokens)
    error = check(tokens)
    anchor = select_anchor(tokens, GRID)
    took = median_seconds(
        {
            "memcpy": lambda: room.copy_(tokens),
            "anchor": lambda: select_anchor(tokens, GRID),
            "match": lambda: best_match(tokens, GRID, anchor=anchor, window=CONFIG.window),
            "plan": lambda: plan_fusion(tokens, GRID, CONFIG),
        }
    )
    ratio = {name: seconds / took["memcpy"] for name, seconds in took.items()}
    bar = BARS.get((num_channels, dtype))
    kept = plan_fusion(tokens, GRID, CONFIG).keep_ratio
    cells = [
        str(num_channels),
        str(dtype).removeprefix("torch."),
        f"{kept:.3f}",
        f"{took['memcpy'] * 1e3:.1f}",
        *(f"{took[name] * 1e3:.1f} ({ratio[name]:.1f}x)" for name in ("anchor", "match", "plan")),
        f"<= {bar:.0f}x" if bar else "-",
        f"{error:.1e}",
    ]
    return f"| {' | '.join(cells)} |", bar is None or ratio["plan"] <= bar


def main() -> int:
    torch.set_num_threads(1)
    print(f"TTF, grid {GRID}, window {CONFIG.window}, threshold {CONFIG.threshold}")
    print(f"- command: `python benchmarks/bench_fusion.py`, {dt.date.today()}")
    print(f"- machine: {cpu_name()}, {os.cpu_count()} cores, 1 thread; torch {torch.__version__}")
    print(f"- wall medians of {ROUNDS} interleaved rounds; x = memcpy of the same bytes\n")
    print("| D | dtype | kept | memcpy ms | anchor ms | match ms | whole plan ms | bar | error |")
    print("|-:|:-|-:|-:|-:|-:|-:|-:|-:|")
    holds = True
    for num_channels in (1024, 2048, 4096):
        for dtype in (torch.float32, torch.bfloat16):
            row, row_holds = table_row(num_channels, dtype)
            print(row, flush=True)
            holds = holds and row_holds
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
    sys.exit(main())
