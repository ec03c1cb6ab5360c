"""Sweeping: removing shards and temporary files that no row of the index refers to."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from typing import Literal

from pipeline.storage import Storage, StoredFile
from pipeline.storage.base import TEMPORARY_SUFFIX
from pipeline.store.fragment import FRAGMENT_NAME, FRAGMENT_SUFFIX, INDEX_FOLDER
from pipeline.store.index import read_fragments
from pipeline.store.shard import SHARD_FOLDER, SHARD_SUFFIX, shard_file
from schemas.index import DIGEST_NAME

_STAGED_NAME = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)}")
_ASIDE_NAME = re.compile(rf"\.([0-9a-f]{{64}})\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)}")

_NAMES = {f"{INDEX_FOLDER}/": FRAGMENT_NAME, f"{SHARD_FOLDER}/": DIGEST_NAME}

Standing = Literal["used", "waiting", "unused"]
"""Of a shard: a row refers to it; none does, but it is young; none does."""

_SUFFIXES = {f"{INDEX_FOLDER}/": FRAGMENT_SUFFIX, f"{SHARD_FOLDER}/": SHARD_SUFFIX}


class Sweep:
    """One sweep of a cache's folders, beside writers; docs/decisions/compaction.md says why so.

    Args:
        storage: where the cache lies.
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
        storage: Storage,
        *,
        used: Collection[str],
        fragments: Collection[str],
        fading: Collection[str],
        grace_seconds: float,
        is_dry_run: bool = False,
    ) -> None:
        self._storage = storage
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
        for file in self._storage.files(""):
            if _STAGED_NAME.fullmatch(file.name):
                self._sweep_file("", file)
        for folder in (INDEX_FOLDER, SHARD_FOLDER):
            for file in self._storage.files(folder):
                self._sweep_file(f"{folder}/", file)

    def _sweep_file(self, folder: str, file: StoredFile) -> None:
        with suppress(FileNotFoundError):  # another compaction took it
            stem, dot, suffix = file.name.rpartition(".")
            if not file.is_regular:
                self.counts["foreign"] += 1
            elif aside := _ASIDE_NAME.fullmatch(file.name):
                self._sweep_shard(file, aside[1])
            elif file.name.endswith(TEMPORARY_SUFFIX):
                self._sweep_temporary(folder, file)
            elif not _NAMES[folder].fullmatch(stem) or dot + suffix != _SUFFIXES[folder]:
                self.counts["foreign"] += 1
            elif folder == f"{SHARD_FOLDER}/":
                self._sweep_shard(file, stem)

    def _sweep_temporary(self, folder: str, file: StoredFile) -> None:
        if not self._is_young(file):
            self._count("temporary_files", file)
            if not self._is_dry_run:
                self._storage.remove(folder + file.name)

    def _sweep_shard(self, file: StoredFile, name: str) -> None:
        """Sweep the shard called ``name``, which may stand aside since a sweep was killed."""
        is_aside = _ASIDE_NAME.fullmatch(file.name) is not None
        standing = self.standing(file, name)
        if self._is_dry_run or (standing != "unused" and not is_aside):
            self._count(standing, file)
        elif self._storage.can_rename:
            self.settle(file.name if is_aside else self.set_aside(name), name)
        else:
            self._count(standing, file)
            self._storage.remove(shard_file(name))

    def standing(self, file: StoredFile, name: str) -> Standing:
        """What is known now of ``file`` as the shard called ``name``.

        Raises:
            IndexCorruptError: a fragment committed meanwhile cannot be read.
        """
        if name in self._used:
            return "used"
        if self._is_young(file) or (self._grace_seconds and name in self._fading):
            return "waiting"
        for fragment in read_fragments(self._storage, known=self._fragments):
            self._used |= set(fragment.table["shard"].drop_null().to_pylist())
            self._fragments.add(fragment.name)
        return "used" if name in self._used else "unused"

    def set_aside(self, name: str) -> str:
        """Take a shard's name away from whatever file bears it now; that file's new name.

        Raises:
            FileNotFoundError: no file bears it.
        """
        aside = f".{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        self._storage.rename(shard_file(name), f"{SHARD_FOLDER}/{aside}")
        return aside

    def settle(self, aside: str, name: str) -> None:
        """Remove the shard ``name`` that was set aside, or put it back if it turns out wanted.

        A writer may have replaced it by its equal just before it was set aside, and may have
        committed a row that refers to it since the index was read.

        Raises:
            FileNotFoundError: another compaction settled it.
            IndexCorruptError: as ``standing``; it is put back.
        """
        place = f"{SHARD_FOLDER}/{aside}"
        standing: Standing = "used"
        try:
            file = self._storage.stat(place)
            standing = self.standing(file, name)
            self._count(standing, file)
        finally:
            if standing == "unused":
                self._storage.remove(place)
            else:
                self._storage.put_back(place, shard_file(name))

    def _is_young(self, file: StoredFile) -> bool:
        age = time.time() - file.modified_ns / 1e9
        return self._grace_seconds > 0 and age < self._grace_seconds

    def _count(self, what: str, file: StoredFile) -> None:
        self.counts[what] += 1
        if what in ("unused", "temporary_files"):
            self.counts["bytes"] += file.num_bytes
