"""Reads corrupted caches, one after the other, in a process that may die of it.

    python -m tests.store.fuzz_child FOLDER CASE...

makes a cache in FOLDER, corrupts it anew for each case, reads it in every way, and prints a line
of JSON before and after: the case, then what came of it. A case that is too slow ends the process.
"""

import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import traceback
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.cache import CachedVideo, TokenCache, open_cache
from pipeline.storage import open_storage
from pipeline.store.discard import discard_damage
from pipeline.store.verify import VerifyFinding, verify_cache
from schemas.errors import CacheCorruptError, TokenreelError
from tests.store.fuzz_cache import STRANGER, make_cache, make_outside
from tests.store.fuzz_cases import corrupt

DEADLINE_SECONDS = 60
MAX_BYTES_AT_ONCE = 48 * 2**20
"""A case may take this much more memory than there was; the cache's files have 0.2 MB."""

MAX_ADDRESS_BYTES = 2**30
"""Nor may it ask the system for this much more, used or not."""

LOADS: tuple[dict[str, Any], ...] = ({}, {"budget": 17}, {"threshold": 0.4})
TENSORS = ("features", "coordinates", "score", "input_ids", "position_ids", "visual_index", "match")

POOLS: list[pa.MemoryPool] = []
"""One for each case, to tell what Arrow took; Arrow itself keeps none of them alive."""

SYSTEM = (sys.prefix, sys.base_prefix, "/usr", "/lib", "/proc/self", "/sys", str(Path.cwd()))


class OpenedFiles:
    """Notes every file below no allowed folder that the process opens while ``root`` is set."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if self.root is None or event != "open" or not isinstance(args[0], str | bytes):
            return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100 - a link is not followed
        if not isinstance(args[2], int) or not args[2] & os.O_NOFOLLOW:
            path = os.path.realpath(path)
        if not path.startswith((self.root, *SYSTEM)):
            self.outside.append(path)


class Reader:
    """Reads a cache in every way and compares what it gives with what was committed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outcomes: set[str] = set()
        self.wrong: list[str] = []
        self.is_forged, self.asks = False, True
        self.expected: dict[str, list[CachedVideo]] = {}
        cache = open_cache(root)
        self.about = dict(cache.manifest.about)
        for video_id in cache.ids():
            self.expected[video_id] = [cache.load(video_id, **asked) for asked in LOADS]

    def run(self, *, mends: bool) -> None:
        """Open, list, load, ask and verify, then discard; errors of other kinds are raised."""
        self.is_corrupt = False
        with self._noting():
            self._use(open_cache(self.root), LOADS)
        with self._noting():
            damage = self._verify()
            if damage and mends:
                self._mend(damage)

    def _verify(self) -> list[VerifyFinding]:
        findings = list(verify_cache(open_storage(self.root)))
        self.outcomes |= {finding.kind for finding in findings}
        damage = [finding for finding in findings if finding.is_damage]
        if self.is_corrupt and not damage:
            self.wrong.append("the loader refuses what verify finds sound")
        return damage

    def _mend(self, damage: list[VerifyFinding]) -> None:
        """Take what is damaged out of service: verify and the loader find no damage any more."""
        discarded = discard_damage(open_storage(self.root), damage)
        if discarded.by_hand:
            return
        self.is_corrupt, self.asks = False, False
        if self._verify():
            self.wrong.append(f"damage is left after {damage[0]} was discarded")
        self._use(open_cache(self.root), LOADS[:1])
        if self.is_corrupt:
            self.wrong.append(f"the loader still refuses what was discarded: {self.outcomes}")

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except TokenreelError as error:
            self.outcomes.add(type(error).__name__)
            self.is_corrupt |= isinstance(error, CacheCorruptError)
            if len(str(error)) > 3_000_000 or "\n" in str(error):
                self.wrong.append(f"the error is not one line: {str(error)[:200]!r}")

    def _use(self, cache: TokenCache, loads: Sequence[dict[str, Any]]) -> None:
        repr(cache)
        found = list(cache.ids())
        if len(found) != len(cache):
            self.wrong.append(f"{len(cache)} videos, but ids() gives {len(found)}")
        if STRANGER in found or dict(cache.manifest.about) != self.about:
            self.wrong.append("something of another cache was read")
        for video_id in dict.fromkeys([*self.expected, *found]):
            self._load_all(cache, video_id, loads)
        with self._noting():
            cache.failed()
        if self.asks:
            with self._noting():
                cache.query("keep_ratio < 2")

    def _load_all(self, cache: TokenCache, video_id: str, loads: Sequence[dict[str, Any]]) -> None:
        known = self.expected.get(video_id)
        for place, asked in enumerate(loads):
            with self._noting():
                video = cache.load(video_id, **asked)
                if known and not self.is_forged and (wrong := difference(video, known[place])):
                    self.wrong.append(f"{video_id} {asked}: {wrong} differs")


def difference(video: CachedVideo, good: CachedVideo) -> str | None:
    """The tensor in which two videos differ, in type, shape or any bit."""
    for name in TENSORS:
        one, two = getattr(video, name), getattr(good, name)
        if one.dtype != two.dtype or one.shape != two.shape:
            return name
        if not one.equal(two):
            return name
    return None


def restore(spare: Path, root: Path) -> None:
    """Make the cache sound again."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(spare, root)


def run_case(reader: Reader, case: str, opened: OpenedFiles) -> dict[str, Any]:
    """Corrupt the cache, read it, and say what came of it; ``wrong`` lists what must not be."""
    corruption = corrupt(reader.root, case)
    reader.outcomes, reader.wrong = set(), []
    reader.is_forged = corruption.is_forged
    reader.asks = "index/" in corruption.note  # SQL reads nothing else
    tell({"case": case, "note": corruption.note[:300]})
    faulthandler.dump_traceback_later(DEADLINE_SECONDS, exit=True)
    POOLS.append(pa.proxy_memory_pool(pa.system_memory_pool()))
    pa.set_memory_pool(POOLS[-1])
    before = forget_peak()
    opened.root, opened.outside = str(reader.root), []
    try:
        reader.run(mends=zlib.crc32(case.encode()) % 3 == 0)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        reader.wrong.append(f"{error!r:.300} at {place.filename}:{place.lineno}")
    finally:
        opened.root = None
        faulthandler.cancel_dump_traceback_later()
    taken = max(resident("VmHWM") - before, POOLS[-1].max_memory())
    if taken > MAX_BYTES_AT_ONCE:
        reader.wrong.append(f"{taken / 2**20:.0f} MiB were taken")
    reader.wrong += [f"opened {path}" for path in opened.outside]
    return {
        "case": case,
        "outcomes": sorted(reader.outcomes),
        "wrong": reader.wrong,
        "taken": taken,
    }


def tell(line: dict[str, Any]) -> None:
    """A line to whoever started this process."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def forget_peak() -> int:
    """Begin to measure the most memory in use; what is in use now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    """A figure of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def main(folder: Path, cases: list[str]) -> None:
    root, spares = folder / "cache", (folder / "loose", folder / "buckets")
    make_outside(folder / "outside")
    for spare in spares:
        make_cache(spare, in_buckets=spare.name == "buckets")
        restore(spare, root)
        reader = Reader(root)
        reader.run(mends=False)
        assert not reader.outcomes, f"{spare.name}: not sound: {reader.outcomes}"
        assert not reader.wrong, reader.wrong
    opened = OpenedFiles()
    limit = resident("VmSize") + MAX_ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in cases:
        restore(spares[zlib.crc32(case.encode()) % 6 == 0], root)
        tell(run_case(reader, case, opened))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
