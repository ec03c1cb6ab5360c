"""Write toy videos and the questions about them.

    python -m examples.toyworld.make_videos toy/ --videos 100
    tokenreel build toy/videos --out toy/cache --model examples/toyworld/model --fps 4
    tokenreel eval toy/questions.jsonl --cache toy/cache --model examples/toyworld/model --by kind

``toy/videos`` holds H.264 files, ``toy/questions.jsonl`` a line per question: video_id, kind,
level, question, answer, and blind_answer, the likeliest to one who has not seen the video. Levels
take turns; equal seeds give equal files and questions. With ``--per-kind N`` some N questions of
each kind are asked: rounded up so that each of its answers is right as often as any other, fewer
where one of them is rare.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from examples.toyworld.arguments import at_least
from examples.toyworld.draw import draw_scene
from examples.toyworld.question_set import AskedQuestion, balanced, blind_answers
from examples.toyworld.questions import ask
from examples.toyworld.render import render
from examples.toyworld.scene import FIRST_SEEDS, FRAMES_PER_SECOND, Scene
from pipeline.decode.clips import write_clip

ENCODING = {"crf": "12", "x264-params": "asm=0"}
"""Of x264. Its assembly for the macroblock tree reads past the edge of pictures as small as these:
with it equal frames give files that differ from time to time."""


def video_id(scene: Scene) -> str:
    """Name of a scene's file."""
    return f"toy_{scene.seed:07}.mp4"


def write_video(scene: Scene, path: Path) -> None:
    """Encode one scene with H.264, four frames a second, one key frame a second."""
    fps = int(FRAMES_PER_SECOND)
    write_clip(path, render(scene), fps=fps, codec="libx264", gop=fps, bframes=2, options=ENCODING)


def draw_scenes(part: str, count: int, *, skip: int = 0) -> list[Scene]:
    """Scenes of one of ``FIRST_SEEDS``.

    Raises:
        ValueError: they would reach into the next part.
    """
    start = FIRST_SEEDS[part]
    later = [seed for seed in FIRST_SEEDS.values() if seed > start]
    if later and skip + count > min(later) - start:
        raise ValueError(
            f"part {part} has {min(later) - start} scenes, too few to skip {skip} and take {count}"
        )
    return [draw_scene(start + skip + number) for number in range(count)]


def write_world(folder: Path, scenes: Sequence[Scene], asked: Sequence[AskedQuestion]) -> None:
    """Write the videos of scenes and the questions asked about them."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for scene in tqdm(scenes, unit="video", disable=None):
        write_video(scene, folder / "videos" / video_id(scene))
    blind = blind_answers() if asked else {}
    lines = [
        json.dumps(
            {
                "video_id": video_id(each.scene),
                "kind": each.question.kind,
                "level": each.scene.level,
                "question": each.question.text,
                "answer": each.question.answer,
                "blind_answer": blind.get(each.question.text, ""),
            }
        )
        for each in asked
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made where it is not there")
    parser.add_argument("--videos", type=at_least(1), default=20, help="how many (default 20)")
    parser.add_argument("--part", choices=FIRST_SEEDS, default="test", help="default test")
    parser.add_argument("--skip", type=at_least(0), default=0, help="leave out the first so many")
    parser.add_argument(
        "--per-kind",
        type=at_least(1),
        help="balanced questions of each kind, about; fewer where an answer is rare",
    )
    given = parser.parse_args(arguments)
    if (given.folder / "videos").exists() or (given.folder / "questions.jsonl").exists():
        parser.error(f"{given.folder} holds toy videos already; give another folder, or remove it")
    try:
        scenes = draw_scenes(given.part, given.videos, skip=given.skip)
    except ValueError as error:
        parser.error(str(error))
    if given.per_kind:
        asked = balanced(scenes, per_kind=given.per_kind, seed=0)
    else:
        asked = [AskedQuestion(scene, question) for scene in scenes for question in ask(scene)]
    try:
        write_world(given.folder, scenes, asked)
    except OSError as error:
        parser.error(f"cannot write to {given.folder}: {error.strerror}")
    print(f"{len(scenes)} videos and {len(asked)} questions in {given.folder}")


if __name__ == "__main__":
    main()
