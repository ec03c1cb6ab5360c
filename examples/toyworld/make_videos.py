"""Write toy videos and the questions about them.

    python -m examples.toyworld.make_videos toy/ --videos 100
    tokenreel build toy/videos --out toy/cache --model MODEL --fps 4

``toy/videos`` holds H.264 files, ``toy/questions.jsonl`` a line per question: video_id, kind,
level, question, answer. Levels take turns; equal seeds give equal frames and questions.
"""

import argparse
import json
from pathlib import Path

from examples.toyworld.draw import draw_scene
from examples.toyworld.questions import ask
from examples.toyworld.render import render
from examples.toyworld.scene import FRAMES_PER_SECOND, LEVELS, Scene
from pipeline.decode.clips import write_clip

QUALITY = {"crf": "12"}


def write_video(scene: Scene, path: Path) -> None:
    """Encode one scene with H.264, four frames a second, one key frame a second."""
    fps = int(FRAMES_PER_SECOND)
    write_clip(path, render(scene), fps=fps, codec="libx264", gop=fps, bframes=2, options=QUALITY)


def write_world(folder: Path, *, num_videos: int, seed: int) -> int:
    """Write videos of ``seed``, ``seed + 1`` ... and their questions; the number of questions."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_videos):
        scene = draw_scene(seed + number, LEVELS[number % len(LEVELS)])
        video_id = f"toy_{scene.seed:06}.mp4"
        write_video(scene, folder / "videos" / video_id)
        for question in ask(scene):
            record = {
                "video_id": video_id,
                "kind": question.kind,
                "level": scene.level,
                "question": question.text,
                "answer": question.answer,
            }
            lines.append(json.dumps(record))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made where it is not there")
    parser.add_argument("--videos", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first video (default 0)")
    given = parser.parse_args()
    count = write_world(given.folder, num_videos=given.videos, seed=given.seed)
    print(f"{given.videos} videos and {count} questions in {given.folder}")


if __name__ == "__main__":
    main()
