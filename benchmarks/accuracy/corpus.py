"""The toy videos and questions that accuracy is measured on, and a cache of all their tokens.

All is kept in folders named by digests of what made it, so that nothing old is taken for new.
"""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples import toyworld
from examples.toyworld import TRAINED
from examples.toyworld.arguments import at_least
from examples.toyworld.make_videos import draw_scenes, write_world
from examples.toyworld.question_set import balanced
from examples.toyworld.scene import FRAMES_PER_SECOND
from jobs.build import build
from pipeline import fusion
from pipeline.cache import TokenCache, open_cache
from pipeline.evaluation.identity import digest_checkpoint
from pipeline.evaluation.questions import Question, read_questions
from schemas.config import BuildConfig, EncoderConfig, SamplingConfig
from schemas.fusion import FusionConfig

NUM_VIDEOS, PER_KIND = 640, 360
WORLD_MODULES = ("scene", "masks", "draw", "render", "questions", "question_set", "make_videos")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Videos with balanced questions, one model, and where things are kept.

    ``whole`` is a cache of all tokens, made by the public build from H.264 files.
    """

    work: Path
    model: Path
    questions: list[Question]
    whole: TokenCache
    name: str


def parser_of(description: str) -> argparse.ArgumentParser:
    """With the options that all scripts of this folder have."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=_checkpoint, default=str(TRAINED), help="folder")
    parser.add_argument("--name", default="seed 0", help="of the model, in tables and plots")
    parser.add_argument(
        "--work", type=Path, default="build/accuracy", help="folder of videos, caches and answers"
    )
    positive = at_least(1)
    parser.add_argument("--videos", type=positive, default=NUM_VIDEOS, help="how many")
    parser.add_argument(
        "--per-kind", type=positive, default=PER_KIND, help="questions of each kind, at most"
    )
    parser.add_argument(
        "--processes", type=positive, default=os.cpu_count() or 1, help="that answer"
    )
    return parser


def _checkpoint(text: str) -> Path:
    folder = Path(text)
    if not (folder / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} holds no config.json; expected a checkpoint")
    return folder


def open_corpus(given: argparse.Namespace) -> Corpus:
    """Make what is not there yet; a second script finds it all."""
    world = world_folder(given)
    if not (world / "questions.jsonl").exists():
        scenes = draw_scenes("test", given.videos)
        write_world(world, scenes, balanced(scenes, per_kind=given.per_kind, seed=0))
    digest = digest_checkpoint(given.model)[:12]
    cache = world / f"whole-{digest}"
    make_cache(world, cache, given.model, FusionConfig(method="none"))
    return Corpus(
        work=world / f"answers-{digest}-{_digest_sources()}",
        model=given.model,
        questions=read_questions([world / "questions.jsonl"]),
        whole=open_cache(cache),
        name=given.name,
    )


def world_folder(given: argparse.Namespace) -> Path:
    """Where the videos of these options are, as today's generator makes them."""
    folder = Path(toyworld.__file__).parent
    made_by = _digest([folder / f"{name}.py" for name in WORLD_MODULES])
    work: Path = given.work
    return work / f"test-{given.videos}-{given.per_kind}-{made_by}"


def _digest_sources() -> str:
    """Of all that decides which tokens are kept, and where they stand."""
    sources = sorted(Path(fusion.__file__).parent.glob("*.py"))
    return _digest([*sources, Path(__file__).parent / "settings.py"])


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:8]


def make_cache(world: Path, cache: Path, model: Path, fusion: FusionConfig) -> None:
    """Build what is not built yet, as ``tokenreel build`` does."""
    config = BuildConfig(
        sampling=SamplingConfig(fps=FRAMES_PER_SECOND),
        encoder=EncoderConfig(model=str(model), device="cpu"),
        fusion=fusion,
    )
    build([str(world / "videos")], cache, config, progress_style="none")


def write_result(corpus: Corpus, name: str, rows: list[dict[str, object]]) -> Path:
    """Keep a table as JSON beside the answers."""
    path = corpus.work / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model": corpus.name, "rows": rows}, indent=1) + "\n")
    return path
