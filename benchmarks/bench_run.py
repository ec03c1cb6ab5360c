"""What a build costs round its work: Ray against in process, two workers against one, overlap.

Run: python benchmarks/bench_run.py
Every build is a process of its own with one thread for torch and one decode child per worker; its
seconds count from when its workers stand ready. The forms alternate; medians of ROUNDS.
"""

import dataclasses
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs.plan import make_plan
from jobs.read_ahead import Frames, ReadAhead
from pipeline.corpus import find_videos
from pipeline.decode.clips import write_scene_clip
from pipeline.encoders import load_encoder
from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.preprocess import resize_frames, target_size
from schemas.config import BuildConfig
from schemas.config_file import parse_config
from schemas.video import VideoProbe

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 2
NUM_VIDEOS = 200
NUM_CLIPS = 20


@dataclass(frozen=True)
class Case:
    """Clips of 640x480 that differ in how much there is to decode and to encode."""

    name: str
    seconds: float
    fps: int
    max_pixels: int


CASES = (
    Case("decode-bound", seconds=4.0, fps=24, max_pixels=8 * 128 * 192),
    Case("encode-bound", seconds=0.5, fps=8, max_pixels=4 * 384 * 512),
)

FORMS = {
    "in process": (),
    "Ray, 1 worker": ("--runner", "ray"),
    "Ray, 2 workers": ("--runner", "ray", "--workers", "2"),
}


def main() -> None:
    torch.set_num_threads(1)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"date: {dt.date.today()}  command: python benchmarks/bench_run.py")
    print(f"load average: {os.getloadavg()[0]:.1f}  rounds: {ROUNDS}  videos: {NUM_VIDEOS}\n")
    print(
        f"| videos/s | {' | '.join(FORMS)} | decode alone | encode alone | Ray 1 / in process |",
        end="",
    )
    print(" 2 workers / 1 | in process / slower alone |")
    print("|-|" + "-|" * 8)
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_checkpoint(Path(folder) / "model")
        for case in CASES:
            print(table_line(Bench(Path(folder) / case.name, model, case)), flush=True)


def table_line(bench: "Bench") -> str:
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for form, flags in FORMS.items():
            rates.setdefault(form, []).append(bench.build(*flags))
        decode, encode = bench.stages_alone()
        rates.setdefault("decode alone", []).append(decode)
        rates.setdefault("encode alone", []).append(encode)
    median = {form: statistics.median(values) for form, values in rates.items()}
    one, two = median["Ray, 1 worker"], median["Ray, 2 workers"]
    local, slower = median["in process"], min(median["decode alone"], median["encode alone"])
    cells = [*(f"{rate:.1f}" for rate in median.values())]
    cells += [f"{one / local:.2f}", f"{two / one:.2f}", f"{local / slower:.2f}"]
    return f"| {bench.case.name} | {' | '.join(cells)} |"


class Bench:
    """A corpus, and caches built of it."""

    def __init__(self, folder: Path, model: Path, case: Case) -> None:
        self.case = case
        self._folder = folder
        self._model = model
        self._num_builds = 0
        self._corpus = folder / "corpus"
        self._corpus.mkdir(parents=True)
        for number in range(NUM_VIDEOS):
            path = self._corpus / f"{number:03d}.mp4"
            if number < NUM_CLIPS:
                write_scene_clip(
                    path, seed=number, seconds=case.seconds, width=640, height=480, fps=case.fps
                )
            else:
                path.hardlink_to(self._corpus / f"{number % NUM_CLIPS:03d}.mp4")
        self._settings = folder / "build.toml"
        self._settings.write_text(f"[preprocess]\nmax_pixels = {case.max_pixels}\n")

    def build(self, *flags: str) -> float:
        """Videos per second of one build."""
        self._num_builds += 1
        command = [
            *(sys.executable, "-m", "jobs", "build", str(self._corpus)),
            *("--out", str(self._folder / f"cache-{self._num_builds}")),
            *("--model", str(self._model), "--device", "cpu", "--json"),
            *("--config", str(self._settings), *flags),
        ]
        ended = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        summary = json.loads(ended.stdout)
        assert summary["done"] == NUM_VIDEOS
        return float(NUM_VIDEOS / summary["seconds"])

    def stages_alone(self) -> tuple[float, float]:
        """Videos per second of reading (decode, hash, resize) and of encoding, each by itself."""
        config: BuildConfig = parse_config(
            {
                "encoder": {"model": str(self._model), "device": "cpu"},
                "preprocess": {"max_pixels": self.case.max_pixels},
                "decode": {"read_ahead_bytes": 2**40},
            }
        )
        encoder = load_encoder(config.encoder, config.preprocess)

        def resize(frames: Frames, probe: VideoProbe, num_frames: int) -> Frames:
            size = target_size(
                num_frames,
                probe.height,
                probe.width,
                patches=encoder.patches,
                settings=encoder.preprocess,
            )
            return resize_frames(frames, size)

        delivered: SimpleQueue = SimpleQueue()
        sampled = dataclasses.replace(config, sampling=encoder.settings.sampling)
        reading = ReadAhead(sampled, resize, delivered.put)
        started = time.perf_counter()
        reading.add(make_plan(find_videos([str(self._corpus)]), None).tasks())
        videos = [delivered.get() for _ in range(NUM_VIDEOS)]
        decode_seconds = time.perf_counter() - started
        reading.close()
        started = time.perf_counter()
        for video in videos:
            encoder.encode([torch.from_numpy(video.sampled.frames)])
        return NUM_VIDEOS / decode_seconds, NUM_VIDEOS / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
