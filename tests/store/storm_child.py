"""Writers, readers and compactions on one cache, killed at random moments and started again.

    python -m tests.store.storm_child FOLDER SEED

prints a line of JSON with the counts of what went on; anything amiss ends it with an error.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.cache import CachedVideo, open_cache
from pipeline.storage import open_storage
from pipeline.store.commit import PendingVideo, commit_videos
from pipeline.store.compact import compact_cache
from pipeline.store.record import encode_record
from tests.store.sample_cache import Sample, make_sample

NUM_WRITERS, NUM_READERS = 4, 4
NUM_KILLS = 42
NUM_LOADED = 10
"""Videos that a reader loads each time: so many that are new to it, so many that are known."""


class Storm:
    """One cache at ``root``, beside it the logs of what is known to be committed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.root = folder / "cache"
        self.logs = folder
        self.random = random.Random(seed)
        self.children: dict[int, tuple[str, int]] = {}
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Kill and start again until there were enough kills; then let all end by themselves."""
        for kind, number in (("write", NUM_WRITERS), ("read", NUM_READERS), ("compact", 1)):
            for n in range(number):
                self.start(kind, n)
        while self.counts["write killed"] + self.counts["read killed"] < NUM_KILLS:
            time.sleep(self.random.uniform(0.02, 0.25))
            victim = self.random.choice(list(self.children))
            os.kill(victim, signal.SIGKILL)
            self.bury(victim, is_killed=True)
        (self.logs / "stop").touch()
        while self.children:
            self.bury(next(iter(self.children)), is_killed=False)

    def start(self, kind: str, n: int) -> None:
        """Fork a process of a kind; a process that has died is followed by its like."""
        works: dict[str, Callable[[int], None]] = {
            "write": self.write,
            "read": self.read,
            "compact": self.compact,
        }
        child = os.fork()
        if not child:
            status = 1
            try:
                works[kind](n)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.children[child] = (kind, n)

    def bury(self, child: int, *, is_killed: bool) -> None:
        """Wait for a process; one that ends by itself must have no error."""
        kind, n = self.children.pop(child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if is_killed and status == -signal.SIGKILL:
            self.counts[f"{kind} killed"] += 1
            self.start(kind, n)
        elif status:
            raise SystemExit(f"{kind} {n} ended with {status}")

    def write(self, n: int) -> None:
        """Commit one pair of videos after the other, from the first that is not in the log on."""
        done = self.read_log(f"committed-{n}")
        number = len(done) // 2
        while not (self.logs / "stop").exists():
            names = [f"{n}-{number}", f"shared-{number}"]
            rows = commit_videos(open_storage(self.root), [pending(name) for name in names])
            assert [row.video_id for row in rows] == names
            self.append(f"committed-{n}", names)
            number += 1

    def read(self, n: int) -> None:
        """Open the cache again and again: what anybody knew of before must be there, and whole."""
        chooser = random.Random(os.getpid())
        known: set[str] = set()
        while not (self.logs / "stop").exists():
            before = self.all_known()
            cache = open_cache(self.root)
            found = set(cache.ids())
            assert before <= found, f"reader {n} misses {sorted(before - found)[:5]}"
            for some in (found - known, known):
                for video_id in chooser.sample(sorted(some), min(len(some), NUM_LOADED)):
                    budget = chooser.choice([None, 3, 17])
                    require_whole(cache.load(video_id, budget=budget))
            self.append(f"seen-{n}", sorted(found - known))
            known = found
            self.append(f"passes-{n}", ["pass"])

    def compact(self, _: int) -> None:
        """Compact now and then, with and without buckets."""
        chooser = random.Random(os.getpid())
        while not (self.logs / "stop").exists():
            compact_cache(
                open_storage(self.root), bucket_from_rows=chooser.choice([1, 10**6, 10**6])
            )
            time.sleep(0.1)

    def append(self, log: str, names: list[str]) -> None:
        """Add lines by one write, which a kill does not tear."""
        handle = os.open(self.logs / log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, "".join(f"{name}\n" for name in names).encode())
        finally:
            os.close(handle)

    def read_log(self, log: str) -> list[str]:
        path = self.logs / log
        return path.read_text().splitlines() if path.exists() else []

    def all_known(self) -> set[str]:
        """Every video whose commit returned, or that a reader has seen."""
        logs = [path for kind in ("committed", "seen") for path in self.logs.glob(f"{kind}-*")]
        return {name for path in logs for name in path.read_text().splitlines()}


def sample_of(video_id: str) -> Sample:
    """The one content that a video of this name can have."""
    seed = random.Random(video_id).randrange(2**31)
    return make_sample(seed=seed, num_rows=24 + seed % 30)


def pending(video_id: str) -> PendingVideo:
    """The video to commit, in one of the exact encodings."""
    sample = sample_of(video_id)
    key = f"{random.Random(video_id).getrandbits(256):064x}"
    encoding = "zstd" if len(video_id) % 2 else "none"
    record = encode_record(sample.record(key), encoding, num_layers=1 + sample.num_deepstack)
    return PendingVideo(sample.fields(video_id), record)


def require_whole(video: CachedVideo) -> None:
    """Raise unless the tensors are those that the video's name determines."""
    tensors = sample_of(video.video_id).tensors
    count = video.num_tokens
    order = tensors["prompt_index"][:count].argsort()
    assert count in (3, 17, len(tensors["score"])), (video.video_id, count)
    for name in ("features", "score"):
        assert torch.equal(getattr(video, name), tensors[name][:count][order]), video.video_id
    assert torch.equal(video.match, tensors["match"].int()), video.video_id


def main(folder: Path, seed: int) -> None:
    storm = Storm(folder, seed)
    storm.run()
    passes = sum(len(storm.read_log(f"passes-{n}")) for n in range(NUM_READERS))
    sys.stdout.write(
        json.dumps({**storm.counts, "passes": passes, "known": len(storm.all_known())}) + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
