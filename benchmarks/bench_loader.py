"""How long loading one cached video takes, against one bare read of the same bytes.

Run: python benchmarks/bench_loader.py
Wall-clock medians; the forms alternate within one run, page cache warm, one thread.
"""

import datetime as dt
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cache import TokenCache, open_cache
from pipeline.store.commit import PendingVideo, commit_videos
from pipeline.store.manifest import create_or_check
from pipeline.store.memory import RowMemory
from pipeline.store.record import pack_record
from pipeline.store.shard import shard_path
from schemas.config import FusionConfig, SamplingConfig
from schemas.grid import PatchGeometry
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess

REPEATS = 41
CASES = ((1000, 8192), (3000, 8192), (1000, 16384), (3000, 16384))  # rows, bf16 values per row
GRID = (32, 14, 14)


def main() -> None:
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions: kernel {platform.release()}, torch {torch.__version__}")
    print(f"date: {dt.date.today()}  command: python benchmarks/bench_loader.py")
    print(f"load average: {os.getloadavg()[0]:.1f}  repeats: {REPEATS}  checks: always on\n")
    print("load: memory of videos dropped before is used again; new pages: it is not.")
    print("Columns in x are multiples of the bare read of the whole video.\n")
    print("| rows x row | bare read ms | load | new pages | out= | quarter, out= | of out= |")
    print("|-|-|-|-|-|-|-|")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cache = build_cache(Path(folder))
        for video_id in cache.ids():
            print(table_line(cache, video_id), flush=True)


def table_line(cache: TokenCache, video_id: str) -> str:
    row = cache.row(video_id)
    num_rows, width = row.layout["features"].shape
    quarter = num_rows // 4
    out = torch.zeros(num_rows, width, dtype=torch.bfloat16)
    raw = torch.zeros(row.num_bytes, dtype=torch.uint8).numpy().data
    path = shard_path(cache.root, row.shard)

    def bare_read() -> None:
        handle = os.open(path, os.O_RDONLY)
        assert os.preadv(handle, [raw], row.offset) == row.num_bytes
        os.close(handle)

    medians = alternate(
        bare_read,
        lambda: cache.load(video_id),
        lambda: replace(cache, _memory=RowMemory()).load(video_id),
        lambda: cache.load(video_id, out=out),
        lambda: cache.load(video_id, budget=quarter, out=out),
    )
    bare, again, fresh, into, part = medians
    assert torch.equal(cache.load(video_id).features, cache.load(video_id, out=out).features)
    name = f"{num_rows} x {width * 2 // 1024} KiB ({row.num_bytes / 1e6:.0f} MB)"
    return (
        f"| {name} | {bare * 1e3:.2f} | {again / bare:.2f}x | {fresh / bare:.2f}x "
        f"| {into / bare:.2f}x | {part / bare:.2f}x | {part / into:.2f} |"
    )


def alternate(*forms: Callable[[], object]) -> list[float]:
    """Median seconds of each form, one call of each in turn."""
    seconds: list[list[float]] = [[] for _ in forms]
    for repeat in range(REPEATS + 3):
        for form, times in zip(forms, seconds, strict=True):
            started = time.perf_counter()
            form()
            elapsed = time.perf_counter() - started
            if repeat >= 3:
                times.append(elapsed)
    return [statistics.median(times) for times in seconds]


def build_cache(root: Path) -> TokenCache:
    manifest = Manifest(
        encoder=EncoderIdentity(
            "bench", "0" * 64, "0" * 64, "BF16", 2048, 3, PatchGeometry(16, 2, 2)
        ),
        sampling=SamplingConfig(),
        preprocess=ResolvedPreprocess(1, 2, False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        decode=DecoderIdentity("auto", {}),
        fusion=FusionConfig(),
    )
    create_or_check(root, manifest)
    for number, (num_rows, width) in enumerate(CASES):
        commit_videos(root, [pending(number, num_rows, width, manifest.fingerprint)])
    return open_cache(root)


def pending(number: int, num_rows: int, width: int, fingerprint: str) -> PendingVideo:
    """Random features in a random storage order: the least favourable one for the reader."""
    generator = torch.Generator().manual_seed(number)
    frames, height, wide = GRID
    total = frames * height * wide
    grid_index = torch.randperm(total, generator=generator)[:num_rows]
    columns = torch.empty(num_rows, dtype=torch.int64)
    columns[grid_index.argsort()] = torch.arange(num_rows)
    record = pack_record(
        key=f"{number:064x}",
        features=torch.randn(num_rows, width, generator=generator).to(torch.bfloat16),
        score=torch.linspace(-1, 0.7, num_rows),
        grid_index=grid_index,
        prompt_index=columns,
        input_ids=torch.zeros(num_rows + 10 * frames, dtype=torch.int64),
        position_ids=torch.zeros(3, num_rows + 10 * frames, dtype=torch.int64),
        match=torch.zeros(total, dtype=torch.int64),
    )
    fields = {
        "video_id": f"video{number}.mp4",
        "path": f"video{number}.mp4",
        "fingerprint": fingerprint,
        "size_bytes": 1,
        "modified_ns": 1,
        "created_ns": 1,
        "writer": "bench",
        "grid_frames": frames,
        "grid_height": height,
        "grid_width": wide,
        "tokens_before": total,
        "tokens_after": num_rows,
        "nested": True,
        "hidden_size": width // 4,
        "num_deepstack": 3,
        "dtype": "BF16",
        "next_position": 10_000,
    }
    return PendingVideo(fields, record)


if __name__ == "__main__":
    main()
