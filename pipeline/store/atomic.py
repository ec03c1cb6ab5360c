"""Files that appear whole or not at all: written aside, flushed to disk, then given their name."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import CacheError

TEMPORARY_SUFFIX = ".tmp"
"""Ending of files that are not committed; readers never look at them."""


def publish_replacing(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Give ``path`` the content ``chunks``, whatever stood there before.

    For names made from the content: replacing a file by its equal is harmless, and mends it.

    Raises:
        CacheError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    with _errors_about(path), _staged(path.parent, chunks) as staged:
        staged.replace(path)
        flush_folder(path.parent)


def publish_new(path: Path, chunks: Iterable[bytes | memoryview]) -> bool:
    """Create ``path`` with the content ``chunks`` unless it exists; of two writers one wins.

    Returns:
        Whether this call created the file.

    Raises:
        CacheError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    with _errors_about(path), _staged(path.parent, chunks) as staged:
        try:
            os.link(staged, path)
        except FileExistsError:
            return False
        flush_folder(path.parent)
        return True


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


@contextmanager
def _errors_about(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}; what the cache held is untouched. "
            "Free space or correct the permissions, then run the same command again."
        ) from error
