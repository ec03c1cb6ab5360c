"""The videos of a corpus: folders, files, glob patterns and manifests to a list of VideoRef.

Only names and sizes are looked at; no video is opened.
"""

import difflib
import fnmatch
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.corpus_manifest import MANIFEST_SUFFIXES, read_manifest
from pipeline.corpus_walk import walk_files
from schemas.errors import CorpusError
from schemas.video import Scalar, VideoRef

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""What counts as a video in a folder, in any case; a file named by itself may have any suffix."""

_SUFFIXES = tuple(VIDEO_SUFFIXES)
_NO_EXTRA: Mapping[str, Scalar] = {}  # one for all videos of a folder
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_MAGIC = re.compile(r"[*?\[]")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def find_videos(sources: Sequence[str]) -> list[VideoRef]:
    """List the videos of a corpus, each file once.

    A source is a folder (searched to any depth for known suffixes; hidden names are skipped), one
    file, a glob pattern (``**`` spans folders), or a manifest: .csv, .jsonl or .parquet with the
    columns ``video_id`` and ``uri`` (or ``path``), relative to the manifest. Its further columns
    become ``extra``. A video's id is the path below the folder or the fixed part of the pattern,
    the file name for a single file. A file that several sources name counts once, by its manifest
    row if it has one, otherwise by its first name. A manifest row without a file stays, size -1.

    Returns:
        In the order of the sources: folders and patterns sorted by id, manifests by row. Paths
        are absolute.

    Raises:
        CorpusError: a source that does not exist or holds no video, a remote source, a bad
            manifest line, two files with one id, an id that cannot be printed.
    """
    if not sources:
        raise CorpusError("no corpus given; name a folder, a file, a glob pattern or a manifest")
    listings = [_list_source(source) for source in sources]
    in_manifest = {ref.path for is_manifest, refs in listings if is_manifest for ref in refs}
    chosen: dict[str, VideoRef] = {}
    seen: set[str] = set()
    for is_manifest, refs in listings:
        for ref in refs:
            if is_manifest or (ref.path not in seen and ref.path not in in_manifest):
                _add(chosen, ref)
                seen.add(ref.path)
    _check_extra_columns(chosen.values())
    return list(chosen.values())


def _list_source(source: str) -> tuple[bool, list[VideoRef]]:
    """Whether the source is a manifest, and its videos; there is at least one."""
    path = Path(_local_path(source, "corpus source"))
    is_manifest = path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file()
    if is_manifest:
        refs = _list_manifest(path)
    elif path.is_dir():
        refs = _list_folder(path, lambda names: _has_video_suffix(names[-1]))
    elif path.is_file():
        refs = [_stat_ref(path.name, str(path))]
    elif _MAGIC.search(source) and not os.path.lexists(path):
        refs = _list_pattern(path)
    else:
        raise CorpusError(_not_found(source, path))
    if not refs:
        what = "holds no row" if is_manifest else "names no video"
        raise CorpusError(
            f"corpus source {source!r} {what}; files with these suffixes are videos: "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}. Hidden files and folders are skipped."
        )
    return is_manifest, refs


def _list_manifest(manifest: Path) -> list[VideoRef]:
    folder = str(manifest.parent)
    refs = []
    for row in read_manifest(manifest):
        path = _local_path(row.uri, row.where, folder=folder)
        refs.append(_stat_ref(row.video_id, path, extra=row.extra))
    return refs


def _list_pattern(pattern: Path) -> list[VideoRef]:
    """Files that match, below the part of the pattern before its first wildcard.

    A pattern that ends in a suffix takes all that match; otherwise known suffixes count.
    """
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    wanted = parts[fixed:]
    takes_all = bool(pattern.suffix) and not _MAGIC.search(pattern.suffix)
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise CorpusError(_not_found(str(pattern), root))
    return _list_folder(
        root,
        lambda names: (takes_all or _has_video_suffix(names[-1])) and _matches(names, wanted),
        max_depth=None if "**" in wanted else len(wanted),
    )


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted or not names:
        return not names and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return _matches(names, wanted[1:]) or _matches(names[1:], wanted)
    return fnmatch.fnmatchcase(names[0], wanted[0]) and _matches(names[1:], wanted[1:])


def _list_folder(
    root: Path, takes: Callable[[Sequence[str]], bool], *, max_depth: int | None = None
) -> list[VideoRef]:
    """Videos below a folder, sorted by id; ``takes`` is asked about the path below ``root``."""
    refs = [
        _stat_ref("/".join(names), entry.path, read_stat=entry.stat)
        for names, entry in walk_files(root, max_depth=max_depth)
        if takes(names)
    ]
    return sorted(refs, key=lambda ref: ref.video_id)


def _stat_ref(
    video_id: str,
    path: str,
    *,
    extra: Mapping[str, Scalar] = _NO_EXTRA,
    read_stat: Callable[[], os.stat_result] | None = None,
) -> VideoRef:
    """A reference with the file's size; size and time are -1 without a regular file."""
    try:
        status = read_stat() if read_stat else os.stat(path)  # noqa: PTH116 - for speed
    except OSError:
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        return VideoRef(video_id, path, -1, -1, extra)
    return VideoRef(video_id, path, status.st_size, status.st_mtime_ns, extra)


def _has_video_suffix(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _add(chosen: dict[str, VideoRef], ref: VideoRef) -> None:
    _check_id(ref.video_id, ref.path)
    other = chosen.setdefault(ref.video_id, ref)
    if other.path != ref.path and not _is_same_file(other.path, ref.path):
        raise CorpusError(
            f"video_id {ref.video_id!r} would stand for two files: {other.path} and {ref.path}. "
            "Name the videos yourself in a manifest with the columns video_id and uri."
        )
    if other.extra != ref.extra:
        raise CorpusError(
            f"video_id {ref.video_id!r} ({ref.path}) is named twice with different columns: "
            f"{dict(other.extra)} and {dict(ref.extra)}. Name it once."
        )


def _is_same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _check_id(video_id: str, path: str) -> None:
    if not video_id.isprintable() and any(
        unicodedata.category(letter) in _UNPRINTABLE for letter in video_id
    ):
        raise CorpusError(
            f"video_id {video_id!r} ({path!r}) holds control characters or is not valid UTF-8. "
            "Rename the file, or name the video in a manifest with the columns video_id and uri."
        )


def _check_extra_columns(refs: Iterable[VideoRef]) -> None:
    """Rows share their further columns: one spelling and one type each; only int and float mix."""
    spelling: dict[str, str] = {}
    first: dict[str, tuple[type, VideoRef]] = {}
    for ref in refs:
        for name, value in ref.extra.items():
            spelled = spelling.setdefault(name.lower(), name)
            if spelled != name:
                raise CorpusError(
                    f"columns {spelled!r} and {name!r} (of {ref.video_id!r}) are one column to "
                    "SQL. Spell them alike."
                )
            if value is None:
                continue
            kind = float if type(value) is int else type(value)
            known, other = first.setdefault(name, (kind, ref))
            if known is not kind:
                raise CorpusError(
                    f"column {name!r} holds values of two types: {other.extra[name]!r} for "
                    f"{other.video_id!r} and {value!r} for {ref.video_id!r}. Make them one type."
                )


def _local_path(uri: str, where: str, *, folder: str = "") -> str:
    """The absolute path that ``uri`` names, from ``folder``; symbolic links stay as they are."""
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1].lower() != "file":
        raise CorpusError(
            f"{where}: {uri!r} is remote ({scheme[1]}://), and this version reads local files. "
            "Copy or mount the videos and give their path."
        )
    path = uri
    if scheme:
        parts = urlsplit(uri)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise CorpusError(f"{where}: {uri!r} is not of the form file:///absolute/path")
    if not path or "\0" in path:
        raise CorpusError(f"{where}: {uri!r} is not a path")
    # Path.resolve() would follow symbolic links and change the names.
    return os.path.abspath(os.path.join(folder, path))  # noqa: PTH100, PTH118


def _not_found(source: str, path: Path) -> str:
    if os.path.lexists(path) and not path.is_dir():
        return f"corpus source {source!r} is not a file or folder that can be read"
    missing, parent = path.name, path.parent
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    names = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(missing, names, n=1)
    hint = f"did you mean {str(parent / near[0])!r}?" if near else "check the path"
    return f"corpus source {source!r} does not exist: {parent} has no {missing!r}; {hint}"
