"""``tokenreel status`` beside a build that runs in a process of its own."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest

from pipeline.decode.clips import write_scene_clip
from pipeline.report.status import cache_status, failed_videos
from tests.synthetic import REPOSITORY

pytestmark = pytest.mark.slow

NUM_CLIPS = 400
NUM_BROKEN = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Copies of a few clips, and files of about their size that are no videos."""
    root = tmp_path_factory.mktemp("corpus")
    for seed in range(3):
        write_scene_clip(root / f"{seed}.mp4", seed=seed, seconds=2.0, width=64, height=64, fps=6)
    for number in range(3, NUM_CLIPS):
        shutil.copy(root / f"{number % 3}.mp4", root / f"{number}.mp4")
    sizes = sorted((root / f"{seed}.mp4").stat().st_size for seed in range(3))
    for number in range(NUM_BROKEN):
        (root / f"broken_{number}.mp4").write_bytes(bytes(sizes[number % 3]))
    return root


def command(*arguments):
    return [sys.executable, "-m", "jobs", *map(str, arguments)]


def rows_shown(*arguments):
    """What a process of ``tokenreel`` shows; it must have nothing to complain about."""
    shown = subprocess.run(
        command(*arguments, "--format", "json"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    return [json.loads(line) for line in shown.stdout.splitlines()]


def from_another_terminal(root):
    return rows_shown("status", root), rows_shown("status", root, "--failed")


def from_this_process(root):
    return cache_status(root), failed_videos(root)


def totals(counts, failures):
    """Of ok rows the videos, tokens and bytes; the number of failures, counted and listed."""
    done = [row for row in counts if row["status"] == "ok"]
    assert len({row["video_id"] for row in failures}) == len(failures)
    return (
        *(sum(row[column] for row in done) for column in ("videos", "tokens_after", "bytes")),
        sum(row["videos"] for row in counts if row["status"] != "ok"),
        len(failures),
    )


@pytest.mark.parametrize("status_of", [from_another_terminal, from_this_process])
def test_status_beside_a_build_never_fails_never_goes_back_and_ends_at_the_summary(
    corpus, tmp_path, tiny_checkpoint, status_of
):
    root = tmp_path / "cache"
    (tmp_path / "build.toml").write_text("[store]\nshard_bytes = 1\n")
    flags = ["--config", tmp_path / "build.toml", "--device", "cpu", "--json"]
    build_command = command("build", corpus, "--out", root, "--model", tiny_checkpoint, *flags)
    begun = subprocess.run(
        [*build_command, "--limit", "20"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert begun.returncode == 0, begun.stderr
    looks = [totals(*status_of(root))]
    with (
        (tmp_path / "progress").open("w") as progress,
        subprocess.Popen(
            build_command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=progress,
        ) as building,
    ):
        while building.poll() is None:
            looks.append(totals(*status_of(root)))
        summary = json.loads(building.stdout.read())
    looks.append(totals(*status_of(root)))
    for earlier, later in itertools.pairwise(looks):
        assert all(before <= after for before, after in zip(earlier, later, strict=True))
    assert (looks[0][0], looks[-1][0]) == (20, NUM_CLIPS)
    assert (summary["done"], summary["failed"]) == (NUM_CLIPS - 20, NUM_BROKEN)
    names = ("done", "tokens_after", "bytes", "failed", "failed")
    made = (after - before for before, after in zip(looks[0], looks[-1], strict=True))
    assert tuple(made) == tuple(summary[name] for name in names)
