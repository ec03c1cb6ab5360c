"""Whether a long build stays in bounded memory: very many tiny videos, and one of an hour.

Run: python benchmarks/bench_scale.py [--videos 20000]
The build runs on a Ray of its own with two workers; this process is its driver. Resident sets are
read from /proc, bytes in the object store from the node's metrics endpoint.
"""

import argparse
import datetime as dt
import os
import platform
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ray

from jobs.build import plan_build
from jobs.events import Committed
from jobs.ray_runner import RayRunner
from pipeline.decode.clips import write_scene_clip
from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.storage import open_storage
from pipeline.store.manifest import create_or_check
from schemas.config import BuildConfig
from schemas.config_file import parse_config

MARKS = (100, 500, 1000, 2000, 5000, 10_000, 15_000, 20_000)
NUM_CLIPS = 50
HOUR_FPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=20_000)
    num_videos = parser.parse_args().videos
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"date: {dt.date.today()}  command: python benchmarks/bench_scale.py\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tiny_checkpoint(folder / "model")
        many = folder / "many"
        many.mkdir()
        for number in range(num_videos):
            path = many / f"{number:06d}.mp4"
            if number < NUM_CLIPS:
                write_scene_clip(path, seed=number, seconds=1.0, width=64, height=64, fps=8)
            else:
                path.hardlink_to(many / f"{number % NUM_CLIPS:06d}.mp4")
        run(f"{num_videos} videos of 1 s, 64x64", many, folder / "cache-many", config(model))
        hour = folder / "hour"
        hour.mkdir()
        write_scene_clip(
            hour / "hour.mp4", seed=1, seconds=3600.0, width=320, height=240, fps=HOUR_FPS
        )
        run("one video of an hour, 320x240", hour, folder / "cache-hour", config(model))


def config(model: Path) -> BuildConfig:
    return parse_config(
        {
            "encoder": {"model": str(model), "device": "cpu"},
            "run": {"runner": "ray", "workers": 2},
        }
    )


def run(title: str, corpus: Path, root: Path, settings: BuildConfig) -> None:
    print(title)
    print("| videos done | s | driver MB | each worker MB | object store bytes |\n|-|-|-|-|-|")
    started = time.perf_counter()
    plan = plan_build([str(corpus)], root, settings)
    runner = RayRunner(settings, root)
    try:
        create_or_check(open_storage(root), runner.manifest)
        num_done, marks = 0, [m for m in MARKS if m < len(plan.todo)] + [len(plan.todo)]
        pids: set[int] = set()
        ready = time.perf_counter()
        for event in runner.run(plan.tasks()):
            if not isinstance(event, Committed):
                continue
            num_done += len(event.rows)
            pids |= {int(row.writer.rpartition(":")[2]) for row in event.rows}
            if num_done >= marks[0]:
                marks = [mark for mark in marks if mark > num_done]
                workers = ", ".join(f"{megabytes(pid, 'VmRSS'):.0f}" for pid in sorted(pids))
                print(
                    f"| {num_done} | {time.perf_counter() - ready:.0f} "
                    f"| {megabytes(os.getpid(), 'VmRSS'):.0f} | {workers} "
                    f"| {object_store_bytes():.0f} |",
                    flush=True,
                )
        peaks = ", ".join(f"{megabytes(pid, 'VmHWM'):.0f}" for pid in sorted(pids))
        print(
            f"planned and started in {ready - started:.1f} s; peak MB: driver "
            f"{megabytes(os.getpid(), 'VmHWM'):.0f}, workers {peaks}\n"
        )
    finally:
        runner.close()


def megabytes(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def object_store_bytes() -> float:
    """What the node says its object store holds, in memory or spilled."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("ray_object_store_memory{")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


if __name__ == "__main__":
    main()
