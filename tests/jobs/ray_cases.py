"""Builds on a real Ray: as a user starts them, and with workers of a class of our own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.build import BuildSummary, plan_build
from jobs.events import Event
from jobs.progress import Tally
from jobs.ray_runner import RayRunner
from jobs.worker import Worker
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.fragment import fragment_names, read_fragment
from pipeline.store.index import Index
from pipeline.store.manifest import create_or_check
from pipeline.store.verify import verify_cache
from schemas.config import BuildConfig
from schemas.config_file import format_config
from tests.synthetic import REPOSITORY

PATIENCE_SECONDS = 120.0
NUM_SCENES = 4


def write_scenes(folder: Path, names: Sequence[str]) -> Sequence[str]:
    """Fill a new folder with small clips of a few scenes, each a little larger than the next."""
    folder.mkdir()
    for seed in range(NUM_SCENES):
        write_scene_clip(
            folder / f".{seed}.mp4", seed=seed, seconds=2.0, width=128, height=96, fps=12
        )
    for place, name in enumerate(names):
        shutil.copy(folder / f".{place % NUM_SCENES}.mp4", folder / name)
        # A demuxer does not look at what follows the last box.
        os.truncate(folder / name, 100_000 - 100 * place)
    return names


def write_broken(path: Path, *, num_bytes: int = 2560) -> None:
    """A file that is no video, whatever its name says."""
    path.write_bytes(bytes(range(256)) * (num_bytes // 256))


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.02)


def wait_for_commits(root: Path, building: subprocess.Popen[str]) -> None:
    """Wait until a build has committed something and still has something to do."""
    wait_until(
        lambda: fragment_names(open_storage(root)) or building.poll() is not None, "a first commit"
    )
    assert building.poll() is None, building.stderr and building.stderr.read()


def rows_written(root: Path) -> list[str]:
    """The video ids of all rows of all fragments; a video done twice is there twice."""
    storage = open_storage(root)
    tables = [read_fragment(storage, name) for name in fragment_names(storage)]
    return [video_id for table in tables for video_id in table["video_id"].to_pylist()]


def writers(root: Path) -> list[str]:
    """Which process wrote the row of each video, as ``host:pid``."""
    return Index.read(open_storage(root)).table["writer"].to_pylist()


def pid_of(writer: str) -> int:
    return int(writer.rpartition(":")[2])


def assert_sound(
    root: Path,
    good: Sequence[str],
    failed: Mapping[str, str] | None = None,
    *,
    is_debris_allowed: bool = False,
) -> None:
    """Each good video is there and loads, each other one has its error kind, nothing is broken."""
    cache = open_cache(root)
    assert list(cache.ids()) == sorted(good)
    rows = cache.index.select(["video_id", "status", "error_kind"]).to_pylist()
    kinds = {row["video_id"]: row["error_kind"] for row in rows if row["status"] != "ok"}
    assert kinds == (failed or {})
    for video_id in good:
        assert cache.load(video_id).num_tokens == cache.row(video_id).tokens_after
    findings = [
        found
        for found in verify_cache(open_storage(root))
        if found.is_damage or not is_debris_allowed
    ]
    assert findings == []


@contextmanager
def started_build(
    corpus: Path, root: Path, config: BuildConfig, *flags: str
) -> Iterator[subprocess.Popen[str]]:
    """``tokenreel build`` in a process group of its own, as a terminal starts it."""
    config_file = root.with_suffix(".toml")
    config_file.write_text(format_config(config))
    command = [
        *(sys.executable, "-m", "jobs", "build", str(corpus), "--out", str(root)),
        *("--config", str(config_file), *flags),
    ]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_build(corpus: Path, root: Path, config: BuildConfig, *flags: str) -> tuple[int, str]:
    """Exit code and stderr of ``tokenreel build``."""
    with started_build(corpus, root, config, *flags) as process:
        _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, stderr


class WatchedBuild:
    """A build whose workers are of a given class and whose events a test takes one by one."""

    def __init__(
        self, corpus: Path, root: Path, config: BuildConfig, worker_class: type[Worker]
    ) -> None:
        self.plan = plan_build([str(corpus)], root, config)
        self.tally = Tally(total=len(self.plan.todo))
        self._config = config
        self._runner = RayRunner(config, root, worker_class=worker_class)
        create_or_check(open_storage(root), self._runner.manifest)

    def events(self) -> Iterator[Event]:
        for event in self._runner.run(self.plan.tasks()):
            self.tally.note(event)
            yield event

    @property
    def exit_code(self) -> int:
        return BuildSummary(self.plan, self.tally).exit_code

    def close(self) -> None:
        self._runner.close()
