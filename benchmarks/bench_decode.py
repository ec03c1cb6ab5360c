"""Sampled frames of real clips: PyAV against decord, and this checkout against another one.

Run: python benchmarks/bench_decode.py FOLDER [--other CHECKOUT]
Each form is a process of its own that reads every clip in turn with the others; wall medians of
ROUNDS, after one read that is not counted. Sampling is that of the model's processor, and eight
frames. ``--other`` is a checkout of an earlier state, for example a git worktree.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 7
SAMPLINGS = {"2 fps": "fps=2.0", "8 frames": "num_frames=8"}

WORKER = """
import sys, time
from pipeline.decode import FrameReader
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError
sampling = SamplingConfig({sampling}, min_frames=4, max_frames=768)
with FrameReader(DecodeConfig(decoder="{decoder}"), sampling) as reader:
    for line in sys.stdin:
        begun = time.perf_counter()
        try:
            reader.read(line.rstrip("\\n"))
            print(time.perf_counter() - begun, flush=True)
        except DecodeError:
            print("nan", flush=True)
"""


class Form:
    """One decoder of one checkout, ready to read."""

    def __init__(self, checkout: Path, decoder: str, sampling: str) -> None:
        program = WORKER.format(decoder=decoder, sampling=sampling)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, path: Path) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--other", type=Path)
    arguments = parser.parse_args()
    clips = sorted(p.resolve() for p in arguments.folder.glob("*.[mw]*"))
    forms = {"auto": (REPOSITORY, "auto"), "decord": (REPOSITORY, "decord")}
    if arguments.other:
        forms["other auto"] = (arguments.other.resolve(), "auto")
    for name, sampling in SAMPLINGS.items():
        ready = {form: Form(*made, sampling) for form, made in forms.items()}
        print(f"| {name} | " + " | ".join(f"{form} s" for form in forms) + " | ", end="")
        print(" | ".join(f"auto / {form}" for form in list(forms)[1:]) + " |")
        print("|:-|" + "-:|" * (2 * len(forms) - 1))
        ratios: dict[str, list[float]] = {form: [] for form in list(forms)[1:]}
        for clip in clips:
            rounds = [
                {form: each.seconds(clip) for form, each in ready.items()}
                for _ in range(ROUNDS + 1)
            ][1:]
            medians = {form: statistics.median(r[form] for r in rounds) for form in forms}
            paired = {
                form: statistics.median(r["auto"] / r[form] for r in rounds) for form in ratios
            }
            for form, ratio in paired.items():
                ratios[form] += [ratio] if ratio == ratio else []
            cells = [f"{medians[form]:.3f}" for form in forms]
            cells += [f"{paired[form]:.2f}" for form in paired]
            print(f"| {clip.name} | " + " | ".join(cells) + " |", flush=True)
        for form, found in ratios.items():
            print(f"median of clips, auto / {form}: {statistics.median(found):.2f}")
        for each in ready.values():
            each.close()


if __name__ == "__main__":
    main()
