"""The videos of a corpus: folders, files, glob patterns and manifests to a list of VideoRef.

Only names and sizes are looked at; no video is opened.
"""

import difflib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.corpus_columns import further_columns
from pipeline.corpus_manifest import MANIFEST_SUFFIXES, ManifestRow, read_manifest
from pipeline.corpus_names import (
    VIDEO_SUFFIXES,
    Takes,
    check_id,
    is_pattern,
    is_video_path,
    max_depth,
    split_pattern,
    taken_by,
)
from pipeline.corpus_objects import list_remote
from pipeline.corpus_walk import walk_files
from pipeline.storage import is_remote, scheme_of
from pipeline.storage.location import local_path
from pipeline.storage.remote import local_copy, stat_files
from schemas.errors import ConfigError, CorpusError
from schemas.video import Scalar, VideoRef

_NO_EXTRA: Mapping[str, Scalar] = {}  # one for all videos of a folder


def find_videos(sources: Sequence[str]) -> list[VideoRef]:
    """List the videos of a corpus, each file once.

    A source is a folder (searched to any depth for known suffixes; hidden names are skipped), one
    file, a glob pattern (``**`` spans folders), a prefix, object or pattern of an object store
    (``s3://``, ``gs://``), or a manifest: .csv, .jsonl or .parquet with the
    columns ``video_id`` and ``uri`` (or ``path``), relative to the manifest. Its further columns
    become ``extra``. A video's id is the path below the folder or the fixed part of the pattern,
    the file name for a single file. A file that several sources name counts once, by its manifest
    row if it has one, otherwise by its first name. A manifest row without a file stays, size -1.

    Returns:
        In the order of the sources: folders and patterns sorted by id, manifests by row. Paths
        are absolute.

    Raises:
        CorpusError: a source that does not exist or holds no video, a store that does not answer,
            a bad manifest line, two files with one id, an id that cannot be printed.
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
    further_columns(chosen.values())
    return list(chosen.values())


def _list_source(source: str) -> tuple[bool, list[VideoRef]]:
    """Whether the source is a manifest, and its videos; there is at least one."""
    is_manifest, refs = _list_remote(source) if is_remote(source) else _list_local(source)
    if not refs:
        what = "holds no row" if is_manifest else "names no video"
        raise CorpusError(
            f"corpus source {source!r} {what}; files with these suffixes are videos: "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}. Hidden files and folders are skipped."
        )
    return is_manifest, refs


def _list_remote(source: str) -> tuple[bool, list[VideoRef]]:
    if not source.lower().endswith(tuple(MANIFEST_SUFFIXES)):
        return False, list_remote(source)
    try:
        with local_copy(source) as copy:
            return True, _list_manifest(Path(copy), source, folder=source.rpartition("/")[0])
    except OSError as error:
        raise CorpusError(
            f"corpus manifest {source!r} cannot be read: {error.strerror or error}"
        ) from error


def _list_local(source: str) -> tuple[bool, list[VideoRef]]:
    path = Path(_local_path(source, "corpus source"))
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return True, _list_manifest(path, str(path), folder=str(path.parent))
    if path.is_dir():
        return False, _list_folder(path, is_video_path)
    if path.is_file():
        return False, [_stat_ref(path.name, str(path))]
    if is_pattern(source) and not os.path.lexists(path):
        return False, _list_pattern(path)
    raise CorpusError(_not_found(source, path))


def _list_manifest(manifest: Path, name: str, *, folder: str) -> list[VideoRef]:
    """The rows of a manifest called ``name``; paths in it are relative to ``folder``."""
    rows = list(read_manifest(manifest, name))
    paths = [_row_path(row, folder) for row in rows]
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


def _row_path(row: ManifestRow, folder: str) -> str:
    """The absolute path or URL that a row names."""
    if is_remote(row.uri):
        return row.uri
    if is_remote(folder) and not scheme_of(row.uri):
        if row.uri.startswith("/") or ".." in row.uri.split("/"):
            raise CorpusError(
                f"{row.where}: {row.uri!r} is no name below {folder}; give the whole URL"
            )
        return f"{folder}/{row.uri}"
    return _local_path(row.uri, row.where, folder=folder)


def _list_pattern(pattern: Path) -> list[VideoRef]:
    """Files that match, below the part of the pattern before its first wildcard."""
    fixed, wanted = split_pattern(pattern.parts)
    root = Path(*fixed)
    if not root.is_dir():
        raise CorpusError(_not_found(str(pattern), root))
    return _list_folder(root, taken_by(wanted), depth=max_depth(wanted))


def _list_folder(root: Path, takes: Takes, *, depth: int | None = None) -> list[VideoRef]:
    """Videos below a folder, sorted by id; ``takes`` is asked about the path below ``root``."""
    refs = [
        _stat_ref("/".join(names), entry.path, read_stat=entry.stat)
        for names, entry in walk_files(root, max_depth=depth)
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


def _add(chosen: dict[str, VideoRef], ref: VideoRef) -> None:
    check_id(ref.video_id, ref.path)
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
    if os.path.lexists(path) and not path.is_dir():
        return f"corpus source {source!r} is not a file or folder that can be read"
    missing, parent = path.name, path.parent
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    names = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(missing, names, n=1)
    hint = f"did you mean {str(parent / near[0])!r}?" if near else "check the path"
    return f"corpus source {source!r} does not exist: {parent} has no {missing!r}; {hint}"
