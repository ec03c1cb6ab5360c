"""How long loading one cached video takes: against bare reads, other formats, cold, in threads.

Run: python benchmarks/bench_loader.py
Wall-clock medians; the forms alternate within one run, one thread, page cache warm unless said.
The other formats need: pip install --group bench. Some 4 GB are written to the temporary folder
(TMPDIR); on a folder in memory there is no cold read to measure.
"""

import datetime as dt
import os
import platform
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_peers import CASE, NUM_VIDEOS, peers_table
from loader_cases import (
    REPEATS,
    WARM_UPS,
    Case,
    alternate,
    at_least,
    at_most,
    bare_read,
    build_cache,
    drop,
    empty_bytes,
    flush,
    reads_disk,
    scatter,
    shard_file,
)

from pipeline.cache import TokenCache, open_cache

CASES = (
    Case(1000, 8192),
    Case(3000, 8192),
    Case(6000, 8192),
    Case(1000, 16384),
    Case(2000, 16384),
    Case(3000, 16384),
)
BARS = {16: (1.7, 2.2), 32: (1.5, 2.0)}  # by KiB of a row: scatter only, verified
COLD_CASES = (0, 5)
COLD_REPEATS = 11
PAIR = (4, 5)
LOADS_OF_A_THREAD = 8


def main() -> None:
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions: kernel {platform.release()}, torch {torch.__version__}")
    print(f"date: {dt.date.today()}  command: python benchmarks/bench_loader.py")
    print(f"load average: {os.getloadavg()[0]:.1f}  repeats: {REPEATS}  checks: always on\n")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "sizes")
        sizes = build_cache(root, CASES, per_commit=1)
        flush(root)
        present_tables(sizes, root)
        cold_table(sizes, root)
        videos = peers_table(Path(folder, "peers"))
        threads_table((sizes, root), (videos, Path(folder, "peers", "cache")))
        opening_table(Path(folder, "many"))
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")


@dataclass(frozen=True, slots=True)
class Present:
    """Median seconds of each form on one video, and the share of its bytes a quarter reads."""

    case: Case
    quarter_bytes: float
    bare: float
    load: float
    new_pages: float
    out: float
    scatter: float
    quarter: float
    quarter_scatter: float

    def line(self) -> str:
        scatter_bar, verified_bar = BARS[self.case.row_kib]
        load, new_pages = (
            at_most(took / self.bare, 2.5) if self.case.num_bytes >= 64e6 else self._ratio(took)
            for took in (self.load, self.new_pages)
        )
        return (
            f"| {self.case} | {self.bare * 1e3:.2f} | {load} | {new_pages} "
            f"| {at_most(self.out / self.bare, verified_bar)} "
            f"| {at_most(self.scatter / self.bare, scatter_bar)} |"
        )

    def quarter_line(self) -> str:
        return (
            f"| {self.case} | {at_most(self.quarter_bytes * 100, 26, ' %')} "
            f"| {self._ratio(self.quarter)} | {at_most(self.quarter / self.out, 0.65, '')} "
            f"| {self._ratio(self.quarter_scatter)} "
            f"| {at_most(self.quarter_scatter / self.scatter, 0.45, '')} |"
        )

    def _ratio(self, seconds: float) -> str:
        return f"{seconds / self.bare:.2f}x"


def present_tables(cache: TokenCache, root: Path) -> None:
    measured = [present(cache, root, number) for number in range(len(CASES))]
    print("x: multiples of one bare read of the whole video. new pages: no memory of videos")
    print("dropped before is used again. scatter only: the reads of out=, nothing verified.\n")
    print("| rows x row | bare read ms | load | new pages | out= | scatter only |")
    print("|-|-|-|-|-|-|")
    print("\n".join(video.line() for video in measured))
    print("\nA quarter of the tokens; of full: against the same form's full load.\n")
    print("| rows x row | bytes | out= | of full | scatter only | of full |")
    print("|-|-|-|-|-|-|")
    print("\n".join(video.quarter_line() for video in measured), flush=True)
    print()


def present(cache: TokenCache, root: Path, number: int) -> Present:
    case, video_id = CASES[number], list(cache.ids())[number]
    row, quarter = cache.row(video_id), case.num_rows // 4
    shard = shard_file(root, row)
    out, plain, raw = case.empty_rows(), case.empty_rows(), empty_bytes(row)
    places = plain.view(torch.uint8).numpy().reshape(-1).data
    unused = deque(open_cache(root) for _ in range(WARM_UPS + REPEATS))
    medians = alternate(
        lambda: bare_read(shard, row, raw),
        lambda: cache.load(video_id),
        lambda: unused.popleft().load(video_id),
        lambda: cache.load(video_id, out=out),
        lambda: scatter(shard, row, case.num_rows, places),
        lambda: cache.load(video_id, budget=quarter, out=out),
        lambda: scatter(shard, row, quarter, places),
    )
    part = cache.load(video_id, budget=quarter)
    scatter(shard, row, quarter, places)
    assert torch.equal(part.features, plain[:quarter])
    whole = cache.load(video_id, out=out)
    scatter(shard, row, case.num_rows, places)
    for features in (cache.load(video_id).features, whole.features, plain):
        assert torch.equal(features, case.prompt_rows(number))
    return Present(case, part.bytes_read / whole.bytes_read, *medians)


def cold_table(cache: TokenCache, root: Path) -> None:
    ids = list(cache.ids())
    print(f"Cold: the shard's pages are dropped before every read; {COLD_REPEATS} repeats.\n")
    print("| rows x row | bare read ms | out= |")
    print("|-|-|-|")
    for number in COLD_CASES:
        case, row = CASES[number], cache.row(ids[number])
        shard = shard_file(root, row)
        forms = (
            partial(bare_read, shard, row, empty_bytes(row)),
            partial(cache.load, ids[number], out=case.empty_rows()),
        )
        if not all(reads_disk(form, shard, row.num_bytes or 0) for form in forms):
            print(f"| {case} | not cold: set TMPDIR to a folder on a disk | |")
            continue
        bare, out = alternate(*forms, repeats=COLD_REPEATS, before=partial(drop, shard))
        print(f"| {case} | {bare * 1e3:.1f} | {at_most(out / bare, 1.1)} |", flush=True)
    print()


def threads_table(sizes: tuple[TokenCache, Path], videos: tuple[TokenCache, Path]) -> None:
    """Two threads do twice the work of one; a ratio of 2 is what two free cores allow."""
    pair = [list(sizes[0].ids())[place] for place in PAIR]
    print("Throughput of two threads over one, each with its own videos and its own out=.\n")
    print("| videos | out= | bare reads |")
    print("|-|-|-|")
    names = (f"{CASES[PAIR[0]]}, {CASES[PAIR[1]]}", f"{NUM_VIDEOS} of {CASE}")
    ids = (pair, list(videos[0].ids()))
    for name, (cache, root), some in zip(names, (sizes, videos), ids, strict=True):
        loads, reads = two_threads(cache, root, some)
        print(f"| {name} | {at_least(loads, 1.6)} | {reads:.2f}x |", flush=True)
    print()


def two_threads(cache: TokenCache, root: Path, ids: Sequence[str]) -> tuple[float, float]:
    """Throughput ratios of ``load(out=)`` and of bare reads."""
    rows = {video_id: cache.row(video_id) for video_id in ids}
    longest = max(rows.values(), key=lambda row: row.num_bytes or 0)
    outs = [torch.zeros_like(cache.load(longest.video_id).features) for _ in range(2)]
    raws = [empty_bytes(longest) for _ in range(2)]
    shift = LOADS_OF_A_THREAD + 1
    turns = [
        [ids[(shift * thread + turn) % len(ids)] for turn in range(LOADS_OF_A_THREAD)]
        for thread in range(2)
    ]

    def loads(thread: int) -> None:
        for video_id in turns[thread]:
            cache.load(video_id, out=outs[thread])

    def reads(thread: int) -> None:
        for video_id in turns[thread]:
            bare_read(shard_file(root, rows[video_id]), rows[video_id], raws[thread])

    with ThreadPoolExecutor(2) as threads:
        one, two, bare_one, bare_two = alternate(
            lambda: list(threads.map(loads, range(1))),
            lambda: list(threads.map(loads, range(2))),
            lambda: list(threads.map(reads, range(1))),
            lambda: list(threads.map(reads, range(2))),
        )
    return 2 * one / two, 2 * bare_one / bare_two


def opening_table(root: Path) -> None:
    many = build_cache(root, [Case(4, 32)] * 1000, per_commit=100)
    assert len(many) == 1000
    texts = (
        "pass",
        "import pyarrow",
        f"import tokenreel; tokenreel.open({str(root)!r})",
    )
    nothing, arrow, opened = alternate(*(process(text) for text in texts), repeats=21)
    print("A process that opens a cache of 1,000 videos in 10 commits; 21 repeats.\n")
    print("| python -c | ms | x import pyarrow |")
    print("|-|-|-|")
    print(f"| pass | {nothing * 1e3:.0f} | {nothing / arrow:.2f}x |")
    print(f"| import pyarrow | {arrow * 1e3:.0f} | 1 |")
    print(f"| import tokenreel; tokenreel.open(...) | {opened * 1e3:.0f} ", end="")
    print(f"| {at_most(opened / arrow, 2)} |\n", flush=True)


def process(text: str) -> Callable[[], object]:
    root = Path(__file__).parents[1]
    return lambda: subprocess.run([sys.executable, "-c", text], cwd=root, check=True)


if __name__ == "__main__":
    main()
