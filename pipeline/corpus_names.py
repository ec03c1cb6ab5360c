"""Names in a corpus: which files are videos, which a glob pattern takes, what may be an id."""

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Sequence

from schemas.errors import CorpusError

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""What counts as a video in a folder, in any case; a file named by itself may have any suffix."""

Takes = Callable[[Sequence[str]], bool]
"""Asked about the names of a path below the searched folder."""

_SUFFIXES = tuple(VIDEO_SUFFIXES)
_MAGIC = re.compile(r"[*?\[]")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def is_pattern(text: str) -> bool:
    """Whether ``text`` holds a wildcard."""
    return _MAGIC.search(text) is not None


def is_video_path(names: Sequence[str]) -> bool:
    """Whether the last of ``names`` has the suffix of a video."""
    return names[-1].lower().endswith(_SUFFIXES)


def split_pattern(parts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The parts of a pattern before its first wildcard, and the others."""
    fixed = next(i for i, part in enumerate(parts) if is_pattern(part))
    return parts[:fixed], parts[fixed:]


def taken_by(wanted: Sequence[str]) -> Takes:
    """What a pattern takes: if it ends in a suffix all that match, otherwise known suffixes."""
    stem, dot, suffix = wanted[-1].rpartition(".")
    takes_all = bool(stem and dot and suffix) and not is_pattern(suffix)
    return lambda names: (takes_all or is_video_path(names)) and matches(names, wanted)


def max_depth(wanted: Sequence[str]) -> int | None:
    """Levels in which a pattern can match; None is all of them."""
    return None if "**" in wanted else len(wanted)


def matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the path ``names`` matches the pattern ``wanted``; ``**`` spans folders."""
    if not wanted or not names:
        return not names and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return matches(names, wanted[1:]) or matches(names[1:], wanted)
    return fnmatch.fnmatchcase(names[0], wanted[0]) and matches(names[1:], wanted[1:])


def check_id(video_id: str, path: str) -> None:
    """Look whether the id of the video at ``path`` can be printed.

    Raises:
        CorpusError: it cannot.
    """
    if not video_id.isprintable() and any(
        unicodedata.category(letter) in _UNPRINTABLE for letter in video_id
    ):
        raise CorpusError(
            f"video_id {video_id!r} ({path!r}) holds control characters or is not valid UTF-8. "
            "Rename the file, or name the video in a manifest with the columns video_id and uri."
        )
