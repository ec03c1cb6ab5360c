"""Lists of paths as a source of a corpus: ``-`` for standard input, ``@list.txt`` for a file."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage import is_remote
from pipeline.storage.remote import local_copy
from schemas.errors import CorpusError

STANDARD_INPUT = "-"
_SIGN = "@"


@dataclass(frozen=True, slots=True)
class ListedPath:
    """One line of a list: ``where`` is the list and the number of the line, for messages."""

    where: str
    text: str


def is_list(source: str) -> bool:
    """Whether ``source`` names a list of paths; a file whose name begins with @ is itself."""
    if source == STANDARD_INPUT:
        return True
    return len(source) > 1 and source.startswith(_SIGN) and not os.path.lexists(source)


def list_folder(source: str) -> str:
    """What relative paths of a list begin in: its own folder, or the current one."""
    if source == STANDARD_INPUT:
        return str(Path.cwd())
    name = source.removeprefix(_SIGN)
    return name.rpartition("/")[0] if is_remote(name) else str(Path(name).absolute().parent)


def read_list(source: str) -> Iterator[ListedPath]:
    """The lines of a list that are not blank, just as they are.

    Raises:
        CorpusError: it cannot be read, or holds NUL bytes, as other files and other lists do.
    """
    name = "standard input" if source == STANDARD_INPUT else source.removeprefix(_SIGN)
    try:
        if source == STANDARD_INPUT:
            data = sys.stdin.buffer.read()
        else:
            with local_copy(name) as copy:
                data = Path(copy).read_bytes()
    except OSError as error:
        raise CorpusError(
            f"the list of paths {name!r} cannot be read: {error.strerror or error}. Give a text "
            "file with one path or URI per line."
        ) from error
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if b"\0" in line:
            raise CorpusError(
                f"{name}, line {number}: a NUL byte is in no path. Give a text file with one path "
                "or URI per line (find -print, not -print0)."
            )
        text = os.fsdecode(line.removesuffix(b"\r"))
        if text.strip():
            yield ListedPath(f"{name}, line {number}", text)
