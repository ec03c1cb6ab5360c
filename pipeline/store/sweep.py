"""Sweeping: removing shards and temporary files that no row of the index refers to."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from pipeline.store.atomic import TEMPORARY_SUFFIX
from pipeline.store.fragment import FRAGMENT_SUFFIX, INDEX_FOLDER
from pipeline.store.index import read_fragments
from pipeline.store.shard import (
    SHARD_FOLDER,
    SHARD_SUFFIX,
    name_before,
    put_back,
    set_aside,
    shard_path,
)
from schemas.index import DIGEST_NAME

_STAGED_NAME = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)}")

Standing = Literal["used", "waiting", "unused"]
"""Of a shard: a row refers to it; none does, but it is young; none does."""

_SUFFIXES = {INDEX_FOLDER: FRAGMENT_SUFFIX, SHARD_FOLDER: SHARD_SUFFIX}


class Sweep:
    """One sweep of a cache's folders, beside writers; docs/decisions/compaction.md says why so.

    Args:
        root: the cache folder.
        used: shards that rows of ``fragments`` refer to.
        fragments: names of the fragments whose rows are known.
        fading: shards whose last row was just dropped; readers may still hold it.
        grace_seconds: what is younger stays; with 0 everything is old enough.
        is_dry_run: count only.

    Attributes:
        counts: shards by their ``Standing``, of which the ``unused`` were swept; swept
            ``temporary_files``; ``bytes`` of what was swept; ``foreign`` files, left alone.
    """

    def __init__(
        self,
        root: Path,
        *,
        used: Collection[str],
        fragments: Collection[str],
        fading: Collection[str],
        grace_seconds: float,
        is_dry_run: bool = False,
    ) -> None:
        self._root = root
        self._used = set(used)
        self._fragments = set(fragments)
        self._fading = set(fading)
        self._grace_seconds = grace_seconds
        self._is_dry_run = is_dry_run
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Look at every file once.

        Raises:
            IndexCorruptError: a fragment committed meanwhile cannot be read.
            OSError: a file cannot be renamed or removed.
        """
        for path in _files(self._root):
            if _STAGED_NAME.fullmatch(path.name):
                self._sweep_file(path)
        for folder in (INDEX_FOLDER, SHARD_FOLDER):
            for path in _files(self._root / folder):
                self._sweep_file(path)

    def _sweep_file(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # another compaction took it
            if not S_ISREG(path.lstat().st_mode):
                self.counts["foreign"] += 1
            elif name := name_before(path):
                self._sweep_shard(path, name)
            elif path.name.endswith(TEMPORARY_SUFFIX):
                self._sweep_temporary(path)
            elif not DIGEST_NAME.fullmatch(path.stem) or path.suffix != _SUFFIXES[path.parent.name]:
                self.counts["foreign"] += 1
            elif path.suffix == SHARD_SUFFIX:
                self._sweep_shard(path, path.stem)

    def _sweep_temporary(self, path: Path) -> None:
        if not self._is_young(path):
            self._count("temporary_files", path)
            if not self._is_dry_run:
                path.unlink()

    def _sweep_shard(self, path: Path, name: str) -> None:
        """Sweep the shard called ``name``, which may stand aside since a sweep was killed."""
        is_aside = path.stem != name
        standing = self.standing(path, name)
        if self._is_dry_run:
            self._count(standing, path)
        elif is_aside or standing == "unused":
            self.settle(path if is_aside else set_aside(path))
        else:
            self._count(standing, path)

    def standing(self, path: Path, name: str) -> Standing:
        """What is known now of the file at ``path`` as the shard called ``name``.

        Raises:
            FileNotFoundError: it is gone.
            IndexCorruptError: a fragment committed meanwhile cannot be read.
        """
        if name in self._used:
            return "used"
        if self._is_young(path) or (self._grace_seconds and name in self._fading):
            return "waiting"
        for fragment in read_fragments(self._root, known=self._fragments):
            self._used |= set(fragment.table["shard"].drop_null().to_pylist())
            self._fragments.add(fragment.name)
        return "used" if name in self._used else "unused"

    def settle(self, aside: Path) -> None:
        """Remove a shard that was set aside, or put it back when it turns out to be wanted.

        A writer may have replaced it by its equal just before it was set aside, and may have
        committed a row that refers to it since the index was read.

        Raises:
            FileNotFoundError: another compaction settled it.
            IndexCorruptError: as ``standing``; it is put back.
        """
        name = name_before(aside) or ""
        standing: Standing = "used"
        try:
            standing = self.standing(aside, name)
            self._count(standing, aside)
        finally:
            if standing == "unused":
                aside.unlink(missing_ok=True)
            else:
                put_back(aside, shard_path(self._root, name))

    def _is_young(self, path: Path) -> bool:
        age = time.time() - path.lstat().st_mtime
        return self._grace_seconds > 0 and age < self._grace_seconds

    def _count(self, what: str, path: Path) -> None:
        self.counts[what] += 1
        if what in ("unused", "temporary_files"):
            self.counts["bytes"] += path.lstat().st_size


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
