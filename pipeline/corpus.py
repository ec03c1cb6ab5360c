"""The videos of a corpus: folders, files, glob patterns and manifests to a list of VideoRef.

Only names and sizes are looked at; no video is opened.
"""

# ruff: noqa: PTH112, PTH113 - pathlib raises for a name too long, os.path finds no file
import difflib
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import isdir, isfile
from pathlib import Path

from pipeline.corpus_columns import further_columns
from pipeline.corpus_lists import is_list, list_folder, read_list
from pipeline.corpus_manifest import MANIFEST_SUFFIXES, read_manifest
from pipeline.corpus_names import (
    LIST_SUFFIXES,
    VIDEO_SUFFIXES,
    Takes,
    is_pattern,
    is_video_path,
    matches,
    max_depth,
    printable_id,
    split_pattern,
    suffix_of,
    taken_by,
    told_by_suffix,
)
from pipeline.corpus_objects import list_remote
from pipeline.corpus_walk import walk_files
from pipeline.storage import is_remote, scheme_of
from pipeline.storage.location import local_path
from pipeline.storage.remote import local_copy, stat_files
from schemas.errors import ConfigError, CorpusError
from schemas.video import Scalar, VideoRef

_NO_EXTRA: Mapping[str, Scalar] = {}  # one for all videos of a folder


@dataclass(frozen=True, slots=True)
class Corpus:
    """The videos of a corpus; ``passed_over`` counts other files of its folders by suffix."""

    videos: list[VideoRef]
    passed_over: Mapping[str, int]


def find_videos(sources: Sequence[str]) -> list[VideoRef]:
    """The videos of ``list_corpus``."""
    return list_corpus(sources).videos


def list_corpus(sources: Sequence[str]) -> Corpus:
    """List the videos of a corpus, each file once.

    A source is a folder (searched to any depth for known suffixes; hidden names are skipped), one
    file, a glob pattern (``**`` spans folders), a prefix, object or pattern of an object store
    (``s3://``, ``gs://``), a manifest: .csv, .jsonl or .parquet with the
    columns ``video_id`` and ``uri`` (or ``path``), relative to the manifest; or a list of paths:
    ``-`` for standard input, ``@list.txt`` for a file, relative to its folder. A manifest's further
    columns become ``extra``. A video's id is the path below the folder or the fixed part of the
    pattern or the list's folder, the file name for a single file; control characters and what is
    not UTF-8 are escaped in it. A file that several sources name counts once, by its manifest
    row if it has one, otherwise by its first name. A row or line without a file stays, size -1.

    Returns:
        In the order of the sources: folders and patterns sorted by id, manifests by row. Paths
        are absolute.

    Raises:
        CorpusError: a source that does not exist or holds no video, a store that does not answer,
            a bad line of a manifest or list, two files with one id.
    """
    if not sources:
        raise CorpusError("no corpus given; name a folder, a file, a glob pattern or a manifest")
    passed_over: Counter[str] = Counter()
    listings = [_list_source(source, passed_over) for source in sources]
    in_manifest = {ref.path for is_manifest, refs in listings if is_manifest for ref in refs}
    chosen: dict[str, VideoRef] = {}
    seen: set[str] = set()
    for is_manifest, refs in listings:
        for ref in refs:
            if is_manifest or (ref.path not in seen and ref.path not in in_manifest):
                _add(chosen, ref)
                seen.add(ref.path)
    further_columns(chosen.values())
    return Corpus(list(chosen.values()), dict(passed_over.most_common()))


def _list_source(source: str, passed_over: Counter[str]) -> tuple[bool, list[VideoRef]]:
    """Whether the source is a manifest, and its videos; there is at least one."""
    others: Counter[str] = Counter()
    if is_list(source):
        is_manifest, refs = False, _list_paths(source)
    elif is_remote(source):
        is_manifest, refs = _list_remote(source, others)
    else:
        is_manifest, refs = _list_local(source, others)
    if not refs:
        what = "holds no row" if is_manifest or is_list(source) else "names no video"
        found = f" It holds {told_by_suffix(others)}." if others else ""
        raise CorpusError(
            f"corpus source {source!r} {what}; files with these suffixes are videos: "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}. Hidden files and folders are skipped.{found}"
        )
    passed_over.update(others)
    return is_manifest, refs


def _list_remote(source: str, others: Counter[str]) -> tuple[bool, list[VideoRef]]:
    if not source.lower().endswith(tuple(MANIFEST_SUFFIXES)):
        if source.lower().endswith(tuple(LIST_SUFFIXES)) and not is_pattern(source):
            raise CorpusError(_no_manifest(source))
        return False, list_remote(source, others)
    try:
        with local_copy(source) as copy:
            return True, _list_manifest(Path(copy), source, folder=source.rpartition("/")[0])
    except OSError as error:
        raise CorpusError(
            f"corpus manifest {source!r} cannot be read: {error.strerror or error}"
        ) from error


def _list_local(source: str, others: Counter[str]) -> tuple[bool, list[VideoRef]]:
    path = Path(_local_path(source, "corpus source"))
    if path.suffix.lower() in MANIFEST_SUFFIXES and isfile(path):
        return True, _list_manifest(path, str(path), folder=str(path.parent))
    if isdir(path):
        return False, _list_folder(path, is_video_path, others)
    if isfile(path):
        if path.suffix.lower() in LIST_SUFFIXES:
            raise CorpusError(_no_manifest(source))
        return False, [_stat_ref(path.name, str(path))]
    if is_pattern(source) and not os.path.lexists(path):
        return False, _list_pattern(path, others)
    raise CorpusError(_not_found(source, path))


def _no_manifest(source: str) -> str:
    return (
        f"corpus source {source!r} is no video, and no manifest that is read: manifests are .csv, "
        ".jsonl and .parquet with the columns video_id and uri. A text file with one path per line "
        f"is given as '@{source}', standard input as '-'."
    )


def _list_paths(source: str) -> list[VideoRef]:
    """The files that a list of paths names; one that is named twice counts once."""
    folder = list_folder(source)
    paths: dict[str, str] = {}
    for line in read_list(source):
        path = _resolved(line.text, line.where, folder)
        suffix = suffix_of(path)
        if suffix in LIST_SUFFIXES or suffix in MANIFEST_SUFFIXES or isdir(path):
            raise CorpusError(
                f"{line.where}: {line.text!r} is no file of a video. A list names videos; give "
                "folders and manifests themselves as corpus."
            )
        paths[path] = _listed_id(path, folder)
    try:
        objects = dict(stat_files([path for path in paths if is_remote(path)]))
    except (OSError, ConfigError) as error:
        raise CorpusError(f"{source}: an object it names cannot be looked at: {error}") from error
    return [
        VideoRef(name, path, *objects[path]) if path in objects else _stat_ref(name, path)
        for path, name in paths.items()
    ]


def _listed_id(path: str, folder: str) -> str:
    """The path below the list's folder, or all of it but what it begins with."""
    if path.startswith(f"{folder.rstrip('/')}/"):
        return path.removeprefix(folder.rstrip("/"))[1:]
    return path.partition("://")[2] if is_remote(path) else path.lstrip("/")


def _list_manifest(manifest: Path, name: str, *, folder: str) -> list[VideoRef]:
    """The rows of a manifest called ``name``; paths in it are relative to ``folder``."""
    rows = list(read_manifest(manifest, name))
    paths = [_resolved(row.uri, row.where, folder) for row in rows]
    try:
        objects = dict(stat_files([path for path in paths if is_remote(path)]))
    except (OSError, ConfigError) as error:
        raise CorpusError(f"{name}: an object it names cannot be looked at: {error}") from error
    return [
        VideoRef(row.video_id, path, *objects[path], row.extra)
        if path in objects
        else _stat_ref(row.video_id, path, extra=row.extra)
        for row, path in zip(rows, paths, strict=True)
    ]


def _resolved(uri: str, where: str, folder: str) -> str:
    """The absolute path or URL that a row or line names, which is relative to ``folder``."""
    if is_remote(uri):
        return uri
    if is_remote(folder) and not scheme_of(uri):
        if uri.startswith("/") or ".." in uri.split("/"):
            raise CorpusError(f"{where}: {uri!r} is no name below {folder}; give the whole URL")
        return f"{folder}/{uri}"
    return _local_path(uri, where, folder=folder)


def _list_pattern(pattern: Path, others: Counter[str]) -> list[VideoRef]:
    """Files that match, below the part of the pattern before its first wildcard."""
    fixed, wanted = split_pattern(pattern.parts)
    root = Path(*fixed)
    if not isdir(root):
        raise CorpusError(_not_found(str(pattern), root))
    depth = max_depth(wanted)
    return _list_folder(root, taken_by(wanted), others, depth=depth, pattern=wanted)


def _list_folder(
    root: Path,
    takes: Takes,
    others: Counter[str],
    *,
    depth: int | None = None,
    pattern: Sequence[str] = ("**",),
) -> list[VideoRef]:
    """Videos below a folder, sorted by id; ``takes`` is asked about the path below ``root``.

    ``others`` counts, by suffix, the files that match ``pattern`` and are not taken.
    """
    refs = []
    for names, entry in walk_files(root, max_depth=depth):
        if takes(names):
            refs.append(_stat_ref("/".join(names), entry.path, read_stat=entry.stat))
        elif matches(names, pattern):
            others[suffix_of(names[-1])] += 1
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
    except (OSError, ValueError):  # ValueError: a name that the system cannot have
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        return VideoRef(video_id, path, -1, -1, extra)
    return VideoRef(video_id, path, status.st_size, status.st_mtime_ns, extra)


def _add(chosen: dict[str, VideoRef], ref: VideoRef) -> None:
    if (video_id := printable_id(ref.video_id)) != ref.video_id:
        ref = replace(ref, video_id=video_id)
    other = chosen.setdefault(ref.video_id, ref)
    if other.path != ref.path and not _is_same_file(other.path, ref.path):
        raise CorpusError(
            f"video_id {ref.video_id!r} would stand for two files: {other.path!r} and "
            f"{ref.path!r}. Name the videos yourself in a "
            "manifest with the columns video_id and uri."
        )
    if other.extra != ref.extra:
        raise CorpusError(
            f"video_id {ref.video_id!r} ({ref.path!r}) is named twice with different columns: "
            f"{dict(other.extra)} and {dict(ref.extra)}. Name it once."
        )


def _is_same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _local_path(uri: str, where: str, *, folder: str = "") -> str:
    """The absolute path that ``uri`` names, from ``folder``; symbolic links stay as they are."""
    scheme = scheme_of(uri)
    if scheme and scheme != "file":
        raise CorpusError(
            f"{where}: {uri!r} is remote ({scheme}://), and only s3:// and gs:// are read. "
            "Copy or mount the videos and give their path."
        )
    try:
        path = local_path(uri) if scheme else uri
    except ConfigError as error:
        raise CorpusError(f"{where}: {error}") from error
    if not path or "\0" in path:
        raise CorpusError(f"{where}: {uri!r} is not a path")
    # Path.resolve() would follow symbolic links and change the names.
    return os.path.abspath(os.path.join(folder, path))  # noqa: PTH100, PTH118


def _not_found(source: str, path: Path) -> str:
    if os.path.lexists(path) and not isdir(path):
        return f"corpus source {source!r} is not a file or folder that can be read"
    missing, parent = path.name, path.parent
    while not isdir(parent):
        missing, parent = parent.name, parent.parent
    names = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(missing, names, n=1)
    hint = f"did you mean {str(parent / near[0])!r}?" if near else "check the path"
    return f"corpus source {source!r} does not exist: {parent} has no {missing!r}; {hint}"
