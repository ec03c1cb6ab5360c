"""A build on Ray whose workers and drivers are killed again and again, against an undisturbed one.

Run: python benchmarks/soak_build.py [--videos 200] [--kills 40] [--seed 0]
Exit code 0 when every kill hit, every video has the digests of the undisturbed build, no row is
there twice, and after `tokenreel compact` no file is left that no row refers to.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.storage import open_storage
from pipeline.store.fragment import fragment_names, read_fragment
from pipeline.store.shard import shard_sizes
from pipeline.store.verify import verify_cache

REPOSITORY = Path(__file__).parents[1]
DRIVER_SHARE = 0.25
"""Of the kills; the others hit a worker."""

NUM_SCENES = 6
NUM_WORKERS = 2
MAX_DELAY_SECONDS = 0.1
SETTINGS = """
[preprocess]
max_pixels = 262144
[store]
shard_bytes = 200000
commit_seconds = 2
[run]
videos_at_a_time = 1
"""

VIDEOS_SPENT = {"worker": 3, "driver": 8}
"""From a kill until the next can follow, about. A worker's: the other worker goes on. A driver's:
its two workers finish the two videos that each holds, and those of the next driver as many before
it says a word; with a larger ``videos_at_a_time`` it would be more."""


@dataclass
class Soak:
    """One disturbed build, run again until it is done; ``victims`` has the next kill at its end."""

    corpus: Path
    model: Path
    folder: Path
    random: random.Random
    victims: list[str]
    killed: Counter[str] = field(default_factory=Counter)
    num_runs: int = 0
    workers_killed: set[int] = field(default_factory=set)

    @property
    def cache(self) -> Path:
        return self.folder / "disturbed"

    def run_until_done(self) -> None:
        """Run again after each kill, and after videos were quarantined by two kills in a row."""
        while (code := self._run()) != 0:
            if code not in (3, -signal.SIGKILL):
                raise RuntimeError(f"a build ended with exit code {code}")

    def _run(self) -> int:
        """One driver from its start to its end, of its own accord or killed."""
        self.num_runs += 1
        flags = ("--runner", "ray", "--workers", str(NUM_WORKERS), "--retry-failed")
        with subprocess.Popen(
            build_command(self, self.cache, *flags),
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as driver:
            due = None
            for num_left in videos_left(driver.stderr):
                if not self.victims:
                    continue
                due = self._next_kill(num_left) if due is None else due
                if 0 < num_left <= due and self._kill(driver):
                    due = None
                if driver.returncode is not None:
                    break
        return driver.returncode

    def _next_kill(self, num_left: int) -> int:
        """How many videos are left when it is due: so many that every later kill finds some."""
        num_spare = num_left - sum(VIDEOS_SPENT[victim] for victim in self.victims)
        return num_left - self.random.randint(0, max(0, num_spare) // len(self.victims))

    def _kill(self, driver: subprocess.Popen[str]) -> bool:
        """Kill the next victim, a moment from now; whether one was alive and was not hit before."""
        time.sleep(self.random.uniform(0, MAX_DELAY_SECONDS))
        if self.victims[-1] == "driver":
            driver.kill()
            is_killed = driver.wait() == -signal.SIGKILL
        else:
            is_killed = self._kill_worker(sorted(worker_pids(driver.pid) - self.workers_killed))
        if is_killed:
            self.killed[self.victims.pop()] += 1
        return is_killed

    def _kill_worker(self, alive: list[int]) -> bool:
        if not alive:
            return False
        pid = self.random.choice(alive)
        self.workers_killed.add(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def draw_victims(num_kills: int, chance: random.Random) -> list[str]:
    """Whom to kill, from the last to the first.

    The last is a driver: the run after it, which nobody disturbs, tries what was quarantined again.
    """
    num_drivers = max(1, int(DRIVER_SHARE * num_kills))
    others = ["driver"] * (num_drivers - 1) + ["worker"] * (num_kills - num_drivers)
    chance.shuffle(others)
    return ["driver", *others]


def videos_left(stderr: Iterable[str]) -> Iterator[int]:
    """How many are not encoded yet, each time that a build says that it committed a video."""
    for line in stderr:
        if line.startswith('{"event": "video"'):
            event = json.loads(line)
            yield event["total"] - event["finished"]


def build_command(soak: Soak, cache: Path, *flags: str) -> list[str]:
    settings = soak.folder / "build.toml"
    settings.write_text(SETTINGS)
    return [
        *(sys.executable, "-m", "jobs", "build", str(soak.corpus), "--out", str(cache)),
        *("--model", str(soak.model), "--device", "cpu", "--json", "--config", str(settings)),
        *flags,
    ]


def worker_pids(driver: int) -> set[int]:
    """Ray processes with a Worker inside that descend from ``driver``."""
    parents, workers = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            parents[pid] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::WorkerActor"):
                workers.add(pid)
    return {pid for pid in workers if driver in ancestors(pid, parents)}


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


@dataclass(frozen=True)
class Verdict:
    """What the disturbed cache holds, seen beside the undisturbed one."""

    num_videos: int
    num_equal: int
    num_duplicates: int
    num_orphans: int
    num_damaged: int

    @property
    def holds(self) -> bool:
        troubles = (self.num_duplicates, self.num_orphans, self.num_damaged)
        return self.num_equal == self.num_videos and not any(troubles)


def compare(undisturbed: Path, disturbed: Path, num_videos: int) -> Verdict:
    """Compact the disturbed cache and look at every row, file and byte of it."""
    command = [sys.executable, "-m", "jobs", "compact", str(disturbed), "--grace-seconds", "0"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stderr=subprocess.DEVNULL)
    expected, found = digests(undisturbed), digests(disturbed)
    equal = sum(found.get(video_id) == digest for video_id, digest in expected.items())
    storage = open_storage(disturbed)
    num_rows = sum(read_fragment(storage, name).num_rows for name in fragment_names(storage))
    cache = open_cache(disturbed)
    used = {cache.row(video_id).shard for video_id in cache.ids()}
    stray = set(shard_sizes(storage)) - used
    findings = list(verify_cache(storage))
    damaged = sum(finding.is_damage for finding in findings)
    return Verdict(
        num_videos, equal, num_rows - len(found), max(len(stray), len(findings) - damaged), damaged
    )


def digests(root: Path) -> dict[str, tuple[str, int]]:
    cache = open_cache(root)
    rows = map(cache.row, cache.ids())
    return {row.video_id: (row.key, row.head_digest) for row in rows}


def soak(folder: Path, *, num_videos: int, num_kills: int, seed: int) -> tuple[Soak, Verdict]:
    """Both builds and their comparison, in ``folder``."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(num_videos):
        path = corpus / f"{number:03d}.mp4"
        if number < NUM_SCENES:
            write_scene_clip(path, seed=number, seconds=2.0, width=640, height=480, fps=24)
        else:  # another content of the same scene: no demuxer looks behind the last box
            scene = corpus / f"{number % NUM_SCENES:03d}.mp4"
            path.write_bytes(scene.read_bytes() + number.to_bytes(16, "little"))
    model = write_tiny_checkpoint(folder / "model")
    chance = random.Random(seed)
    run = Soak(corpus, model, folder, chance, draw_victims(num_kills, chance))
    subprocess.run(
        build_command(run, folder / "undisturbed"),
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run.run_until_done()
    return run, compare(folder / "undisturbed", run.cache, num_videos)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run, verdict = soak(
            Path(folder), num_videos=given.videos, num_kills=given.kills, seed=given.seed
        )
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"date: {dt.date.today()}  command: python benchmarks/soak_build.py --seed {given.seed}")
    print(
        f"killed {run.killed['worker']} workers and {run.killed['driver']} drivers; "
        f"{run.num_runs} runs, {time.monotonic() - started:.0f} s in all"
    )
    print(
        f"{verdict.num_equal} of {verdict.num_videos} videos equal to the undisturbed build, "
        f"{verdict.num_duplicates} duplicate rows, {verdict.num_orphans} orphans after compact, "
        f"{verdict.num_damaged} damaged"
    )
    holds = verdict.holds and not run.victims
    print("HELD" if holds else "NOT HELD")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
