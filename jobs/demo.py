"""The whole way in a minute: render videos, build a cache, query it, ask it twice."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.render import render_table
from schemas.config import BuildConfig, DecodeConfig, EncoderConfig, SamplingConfig
from schemas.errors import CacheMismatchError, ConfigError, FormatVersionError
from schemas.fusion import FusionConfig

if TYPE_CHECKING:
    from jobs.build import BuildSummary
    from pipeline.cache import TokenCache
    from pipeline.decode import FrameReader

KINDS_ASKED = {
    "still": ("colour", "count", "letter"),
    "low": ("direction", "end", "touch"),
    "high": ("shape", "when", "flashed"),
    "cuts": ("views", "change", "first"),
}
"""Kinds of questions asked about the video of each motion level, the first of each kind."""

SAMPLING = SamplingConfig(fps=4.0)
THRESHOLD = 0.95
"""Keeps some quarter of the tokens of toy videos, the default of 0.70 half as many."""

ANSWER_TOKENS = 4


@dataclass(slots=True)
class Stopwatch:
    """Seconds since the last look."""

    started: float

    def lap(self) -> str:
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return f"[{seconds:5.2f} s]"


@dataclass(frozen=True, slots=True)
class ToyQuestion:
    """One question about one of the demo's videos, and its true answer."""

    video_id: str
    text: str
    answer: str


def run_demo(root: Path) -> Iterator[str]:
    """Run every step on toy videos and the small trained model; yields what happened."""
    watch = Stopwatch(time.perf_counter())
    questions = _render_videos(root / "videos")
    yield f"{watch.lap()} rendered {len(KINDS_ASKED)} videos of 6 s into {root / 'videos'}"

    from examples.toyworld import TRAINED

    model = root / "model"
    shutil.copytree(TRAINED, model, dirs_exist_ok=True)
    yield f"{watch.lap()} copied a small Qwen3-VL, trained on such videos, into {model}"

    try:
        summary = _build_cache(root, model)
    except (CacheMismatchError, FormatVersionError):
        yield f"{watch.lap()} moved a cache of an earlier version to {_set_aside(root / 'cache')}"
        summary = _build_cache(root, model)
    tally = summary.tally
    num_cached = summary.plan.num_done
    if tally.done:
        yield (
            f"{watch.lap()} encoded {tally.done} videos ({num_cached} were cached before), "
            f"kept {tally.tokens_after} of {tally.tokens_before} tokens"
        )
    else:
        yield f"{watch.lap()} all {num_cached} videos were cached before"
    yield from _read_back(root, model, questions, watch)


def _build_cache(root: Path, model: Path) -> "BuildSummary":
    from jobs.build import build

    config = BuildConfig(
        sampling=SAMPLING,
        encoder=EncoderConfig(model=str(model), device="cpu"),
        fusion=FusionConfig(method="ttf", threshold=THRESHOLD),
    )
    return build([str(root / "videos")], root / "cache", config, progress_style="none")


def _set_aside(cache: Path) -> Path:
    """Rename a folder to the first free name of the form ``cache.1``."""
    names = (cache.with_name(f"{cache.name}.{number}") for number in count(1))
    free = next(name for name in names if not name.exists())
    return cache.rename(free)


def _render_videos(folder: Path) -> list[ToyQuestion]:
    from examples.toyworld.draw import draw_scene
    from examples.toyworld.make_videos import video_id, write_video
    from examples.toyworld.questions import ask
    from examples.toyworld.scene import FIRST_SEEDS

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
    questions = []
    for seed, kinds in enumerate(KINDS_ASKED.values(), FIRST_SEEDS["demo"]):
        scene = draw_scene(seed)
        name = video_id(scene)
        write_video(scene, folder / name)
        first = {question.kind: question for question in reversed(ask(scene))}
        asked = [first[kind] for kind in kinds]
        questions += [ToyQuestion(name, question.text, question.answer) for question in asked]
    return questions


def _read_back(
    root: Path, model: Path, questions: list[ToyQuestion], watch: Stopwatch
) -> Iterator[str]:
    from pipeline.cache import open_cache

    cache = open_cache(root / "cache")
    found = cache.query(
        "SELECT video_id, duration_seconds, tokens_before, tokens_after, "
        "round(keep_ratio, 3) AS keep_ratio FROM index ORDER BY keep_ratio"
    )
    yield f"{watch.lap()} queried the index:"
    yield render_table(found.to_pylist())
    from pipeline.decode import FrameReader

    ways = _ThreeWays(cache, root / "videos", model)
    with FrameReader(DecodeConfig(), SAMPLING) as reader:
        ways.ask(reader, questions[0])  # the first call of each kind sets libraries up
        rows = [ways.ask(reader, question) for question in questions]
    num_right = sum(row["cache"] == row["again"] == row["truth"] for row in rows)
    yield f"{watch.lap()} asked from the cache, again from its KV cache, and from the pixels:"
    yield render_table(rows)
    yield f"{num_right} of {len(rows)} answers from the cache are right, the second time too."
    yield "The model knows toy videos only; for real ones say --model Qwen/Qwen3-VL-2B-Instruct"
    video_id = questions[0].video_id
    yield f'next: tokenreel query {root / "cache"} "keep_ratio < 0.5"'
    yield f"      tokenreel show {root / 'cache'} {video_id} --map"


class _ThreeWays:
    """Asks a question from a video's pixels, from the cache, and from the KV cache."""

    def __init__(self, cache: "TokenCache", videos: Path, model: Path) -> None:
        from pipeline.encoders import load_encoder
        from pipeline.encoders.language_model import load_language_model

        self._cache = cache
        self._videos = videos
        self._encoder = load_encoder(EncoderConfig(model=str(model), device="cpu"))
        self._model: Any = load_language_model(str(model), self._encoder.identity, device="cpu")

    def ask(self, reader: "FrameReader", question: ToyQuestion) -> dict[str, object]:
        """Answers, milliseconds and tokens read, as a row of a table."""
        from pipeline.session import Session

        from_pixels, pixel_ms = _timed(lambda: self._from_pixels(reader, question))
        started = time.perf_counter()
        video = self._cache.load(question.video_id)
        session = Session(self._model, self._encoder.tokenizer, video)
        from_cache = session.ask(question.text, max_new_tokens=ANSWER_TOKENS)
        cache_ms = _milliseconds(started)
        again, again_ms = _timed(lambda: session.ask(question.text, max_new_tokens=ANSWER_TOKENS))
        return {
            "question": question.text,
            "truth": question.answer,
            "cache": from_cache,
            "again": again,
            "pixels": from_pixels,
            "tokens": f"{video.num_tokens} of {video.grid.num_tokens}",
            "cache ms": cache_ms,
            "again ms": again_ms,
            "pixels ms": pixel_ms,
        }

    def _from_pixels(self, reader: "FrameReader", question: ToyQuestion) -> str:
        from pipeline.pixels import pixel_inputs

        path = self._videos / question.video_id
        inputs = pixel_inputs(path, reader, self._encoder, question.text)
        ids = self._model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        return str(self._encoder.tokenizer.decode(new_ids, skip_special_tokens=True))


def _timed(way: Callable[[], str]) -> tuple[str, int]:
    started = time.perf_counter()
    return way(), _milliseconds(started)


def _milliseconds(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)
