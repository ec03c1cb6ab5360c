"""A cache in a folder: files appear whole or not at all, flushed to disk under their name."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage.base import TEMPORARY_SUFFIX, StoredFile, errors_as_cache_error
from schemas.errors import CacheError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """The folder ``root``; it need not exist before something is written."""

    root: Path

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def can_rename(self) -> bool:
        return True

    @property
    def reads_at_once(self) -> int:
        return min(4, os.cpu_count() or 1)

    def where(self, name: str = "") -> str:
        """The full path of ``name``."""
        return str(self.root / name)

    def files(self, folder: str) -> list[StoredFile]:
        """What stands right in ``folder``; links are not followed."""
        found = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        found.append(_listed(entry.name, entry.stat(follow_symlinks=False)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CacheError(
                f"cannot list {self.where(folder)}: {error.strerror}; correct its permissions"
            ) from error
        return sorted(found, key=lambda file: file.name)

    def stat(self, name: str) -> StoredFile:
        """What is known of one file; a link itself is looked at."""
        return _listed(name, (self.root / name).lstat())

    def open_input(self, name: str) -> pa.NativeFile:
        """Open a whole file for Arrow; no link is followed, no pipe waited for."""
        import pyarrow as pa

        path = self.root / name
        if path.exists() and not self.stat(name).is_regular:
            raise OSError(None, "not a regular file")
        return pa.OSFile(str(path))

    @contextmanager
    def open_range(self, name: str) -> Iterator[LocalRange]:
        """Open without following a link and without waiting for a pipe's other end."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(self.root / name, flags)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(None, "not a regular file")
            yield LocalRange(handle, status.st_size)
        finally:
            os.close(handle)

    def prefetch(self, name: str, position: int, num_bytes: int) -> None:
        """Ask the kernel to read these bytes into its cache."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError), self.open_range(name) as file:
                os.posix_fadvise(file.handle, position, num_bytes, os.POSIX_FADV_WILLNEED)

    def create(self, name: str, chunks: Iterable[bytes | memoryview]) -> bool:
        """Written aside, flushed to disk, then linked to its name."""
        path = self.root / name
        with _errors_about(path), _staged(path.parent, chunks) as staged:
            try:
                os.link(staged, path)
            except FileExistsError:
                return False
            flush_folder(path.parent)
            return True

    def replace(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Written aside, flushed to disk, then given its name."""
        path = self.root / name
        with _errors_about(path), _staged(path.parent, chunks) as staged:
            staged.replace(path)
            flush_folder(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file; it need not be there."""
        (self.root / name).unlink(missing_ok=True)

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name; one that bears it is replaced."""
        (self.root / name).rename(self.root / new_name)

    def put_back(self, name: str, old_name: str) -> None:
        """Link the file to its old name, then drop the name it has."""
        with suppress(FileExistsError, FileNotFoundError):
            os.link(self.root / name, self.root / old_name)
        self.remove(name)

    def touch(self, name: str) -> None:
        """Set the time of change to now; a link itself is touched."""
        with suppress(FileNotFoundError):
            os.utime(self.root / name, follow_symlinks=False)

    def flush(self, folder: str) -> None:
        """See to it that names given and taken in ``folder`` outlast a loss of power."""
        flush_folder(self.root / folder)


def _listed(name: str, status: os.stat_result) -> StoredFile:
    is_regular = stat.S_ISREG(status.st_mode)
    return StoredFile(name, status.st_size, status.st_mtime_ns, is_regular)


@dataclass(frozen=True, slots=True)
class LocalRange:
    """An open file of ``end`` bytes."""

    handle: int
    end: int

    def fill(self, buffers: Sequence[memoryview], position: int) -> int:
        """One ``preadv``."""
        return os.preadv(self.handle, buffers, position)

    def announce(self, position: int, num_bytes: int) -> None:
        """Nothing to do: the kernel reads ahead by itself."""


@contextmanager
def _staged(folder: Path, chunks: Iterable[bytes | memoryview]) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        with staged.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """See to it that names given and taken in ``folder`` outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _errors_about(path: Path) -> AbstractContextManager[None]:
    return errors_as_cache_error(f"write {path}", "Free space or correct the permissions")
