"""Names in a corpus: which files are videos, which a glob pattern takes, what may be an id."""

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""What counts as a video in a folder, in any case; a file named by itself may have any suffix."""

LIST_SUFFIXES = frozenset(
    {".feather", ".json", ".list", ".lst", ".m3u", ".ndjson", ".ods", ".orc", ".tab", ".toml"}
    | {".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml"}
)
"""Lists in forms that are not read as manifests, and never videos."""

Takes = Callable[[Sequence[str]], bool]
"""Asked about the names of a path below the searched folder."""

_MAX_TOLD = 8
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


def suffix_of(name: str) -> str:
    """What a file is counted by that is no video: its suffix in small letters, "" for none."""
    stem, _, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if stem and suffix.isalnum() else ""


def told_by_suffix(counts: Mapping[str, int]) -> str:
    """Counts of files by suffix in a few words, the most frequent first.

    >>> told_by_suffix({".gif": 12, "": 1})
    '12 .gif, 1 without suffix'
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {suffix or 'without suffix'}" for suffix, count in ranked[:_MAX_TOLD]]
    left = sum(count for _, count in ranked[_MAX_TOLD:])
    return ", ".join([*parts, f"{left} others"] if left else parts)


def printable_id(name: str) -> str:
    r"""``name`` with escapes for control characters and for bytes that are not UTF-8.

    >>> printable_id("two\nlines.mp4")
    'two\\nlines.mp4'
    """
    if name.isprintable():
        return name
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _UNPRINTABLE
        else letter
        for letter in name
    )
