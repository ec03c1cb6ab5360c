"""Walk the folders of a corpus: hidden names skipped, symbolic links followed, loops ended."""

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import CorpusError


def walk_files(
    root: Path, *, max_depth: int | None = None
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str]]]:
    """Everything below ``root`` that is no folder, hidden names aside, in no order.

    Symbolic links to folders are followed after all real folders, and no folder is entered
    twice: a loop ends, and a file that two ways lead to has the name of the real one.

    Args:
        root: folder to search.
        max_depth: levels to search; None is all of them.

    Yields:
        The names of the path below ``root``, and the entry.

    Raises:
        CorpusError: a folder that cannot be listed.
    """
    entered: set[tuple[int, int]] = set()
    folders: list[tuple[tuple[str, ...], str]] = [((), str(root))]
    links: list[tuple[tuple[str, ...], str]] = []
    while folders or links:
        names, folder = folders.pop() if folders else links.pop(0)
        inner: list[os.DirEntry[str]] = []
        for entry in _list_once(folder, entered):
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield (*names, entry.name), entry
            elif max_depth is None or len(names) + 1 < max_depth:
                inner.append(entry)
        for entry in sorted(inner, key=lambda entry: entry.name):
            place = ((*names, entry.name), entry.path)
            (links if entry.is_symlink() else folders).append(place)


def _list_once(folder: str, entered: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder as they are read; none if the folder was entered before."""
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as scan:
            yield from scan
    except OSError as error:
        raise CorpusError(
            f"cannot list folder {folder}: {error.strerror}. Make it readable, or name the "
            "other folders one by one."
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself
        return False
