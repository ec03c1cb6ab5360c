"""Walk the folders of a corpus: hidden names skipped, symbolic links followed, loops ended."""

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import CorpusError


def walk_files(
    root: Path, *, max_depth: int | None = None
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str]]]:
    """Everything below ``root`` that is no folder, hidden names aside.

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
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise CorpusError(
                f"cannot list folder {folder}: {error.strerror}. Make it readable, or name the "
                "other folders one by one."
            ) from error
        for entry in entries:
            below = (*names, entry.name)
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield below, entry
            elif max_depth is None or len(below) < max_depth:
                (links if entry.is_symlink() else folders).append((below, entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself
        return False
