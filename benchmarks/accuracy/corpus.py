"""The toy videos and questions that accuracy is measured on, and a cache of all their tokens.

All is kept in folders named by digests of what made it, so that nothing old is taken for new.
"""

import argparse
import hashlib
import json
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
from pipeline.cache import TokenCache, open_cache
from pipeline.evaluation.identity import digest_checkpoint
from pipeline.evaluation.questions import Question, read_questions
from schemas.config import BuildConfig, EncoderConfig, SamplingConfig
from schemas.fusion import FusionConfig

NUM_VIDEOS, PER_KIND = 640, 360
SHIPPED = "seed 0"
"""Name of the shipped model."""
ASKING_SCRIPTS = ("settings", "answering", "methods", "thresholds", "orders")
WORLD_MODULES = ("scene", "masks", "draw", "render", "questions", "question_set", "make_videos")
ROOT = Path(__file__).parents[2]


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


def world_parser(description: str) -> argparse.ArgumentParser:
    """With the options that say which videos and questions, and where all is kept."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--work", type=Path, default="build/accuracy", help="folder of videos, caches and answers"
    )
    positive = at_least(1)
    parser.add_argument("--videos", type=positive, default=NUM_VIDEOS, help="test videos drawn")
    parser.add_argument(
        "--per-kind", type=positive, default=PER_KIND, help="questions of each kind, about"
    )
    return parser


def model_parser(description: str) -> argparse.ArgumentParser:
    """With the options that say which model besides."""
    parser = world_parser(description)
    parser.add_argument(
        "--model", type=_checkpoint, default=str(TRAINED), help="checkpoint of the toy world"
    )
    parser.add_argument(
        "--name",
        help="of the model, in tables and plots; else its folder's, or that of the shipped one",
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
    made_by = f"{digest_checkpoint(given.model)[:12]}-{digest_sources()}"
    cache = world / f"whole-{made_by}"
    make_cache(world, cache, given.model, FusionConfig(method="none"))
    return Corpus(
        work=world / f"answers-{made_by}",
        model=given.model,
        questions=read_questions([world / "questions.jsonl"]),
        whole=open_cache(cache),
        name=given.name or _name_of(given.model),
    )


def _name_of(model: Path) -> str:
    return SHIPPED if model.resolve() == TRAINED.resolve() else model.resolve().name


def world_folder(given: argparse.Namespace) -> Path:
    """Where the videos of these options are, as today's generator makes them."""
    folder = Path(toyworld.__file__).parent
    sources = [folder / f"{name}.py" for name in WORLD_MODULES]
    made_by = _digest([*sources, ROOT / "pipeline" / "decode" / "clips.py"])
    work: Path = given.work
    return work / f"test-{given.videos}-{given.per_kind}-{made_by}"


def digest_sources() -> str:
    """Of all that stands between a video and a scored answer, and of what settings' names mean."""
    packages = [path for name in ("pipeline", "schemas") for path in (ROOT / name).rglob("*.py")]
    scripts = [Path(__file__).parent / f"{name}.py" for name in ASKING_SCRIPTS]
    return _digest([*sorted(packages), *scripts])


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
