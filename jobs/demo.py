"""The whole way in a minute: render videos, build a cache, query it, ask it twice."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.render import render_table
from schemas.config import BuildConfig, EncoderConfig, SamplingConfig
from schemas.errors import ConfigError
from schemas.fusion import FusionConfig

NUM_VIDEOS = 4

QUESTIONS = ("What is moving?", "Where does it end?")


@dataclass(slots=True)
class Stopwatch:
    """Seconds since the last look."""

    started: float

    def lap(self) -> str:
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return f"[{seconds:5.2f} s]"


def run_demo(root: Path) -> Iterator[str]:
    """Run every step on videos and a model made on the spot; yields what happened."""
    watch = Stopwatch(time.perf_counter())
    from pipeline.decode.clips import write_scene_clip

    videos = root / "videos"
    try:
        videos.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {videos}: {error.strerror}") from error
    for seed in range(NUM_VIDEOS):
        path = videos / f"scene_{seed}.mp4"
        if not path.exists():
            write_scene_clip(path, seed=seed, seconds=6.0, width=256, height=192, fps=24)
    yield f"{watch.lap()} rendered {NUM_VIDEOS} videos of 6 s into {videos}"

    from pipeline.encoders.tiny import write_tiny_checkpoint

    model = write_tiny_checkpoint(root / "model")
    yield f"{watch.lap()} made a tiny Qwen3-VL with random weights in {model}"

    from jobs.build import build

    config = BuildConfig(
        sampling=SamplingConfig(fps=4.0),
        encoder=EncoderConfig(model=str(model), device="cpu"),
        fusion=FusionConfig(method="ttf", threshold=0.7),
    )
    summary = build([str(videos)], root / "cache", config, progress_style="none")
    tally = summary.tally
    yield (
        f"{watch.lap()} encoded {tally.done} videos ({summary.plan.num_done} were cached before), "
        f"kept {tally.tokens_after} of {tally.tokens_before} tokens"
    )
    yield from _read_back(root, model, watch)


def _read_back(root: Path, model: Path, watch: Stopwatch) -> Iterator[str]:
    from pipeline.cache import open_cache

    cache = open_cache(root / "cache")
    found = cache.query(
        "SELECT video_id, duration_seconds, tokens_before, tokens_after, "
        "round(keep_ratio, 3) AS keep_ratio FROM index ORDER BY keep_ratio"
    )
    yield f"{watch.lap()} queried the index:"
    yield render_table(found.to_pylist())

    from jobs.ask import ask_cache

    video_id = next(iter(cache.ids()))
    answers = ask_cache(
        root / "cache", video_id, QUESTIONS, model=str(model), device="cpu", max_new_tokens=16
    )
    for number, answer in enumerate(answers, 1):
        reuse = "its tokens were prefilled" if number == 1 else "its KV cache was reused"
        yield f"{watch.lap()} asked {video_id} {answer.question!r}: {answer.text!r} ({reuse})"
    yield "The model's weights are random, so its answers are noise; the way they came is real."
    yield f'next: tokenreel query {root / "cache"} "keep_ratio < 0.5"'
    yield f"      tokenreel show {root / 'cache'} {video_id} --map"
