"""``manifest.json``: written once, by whoever comes first, and equal for everybody after."""

from pathlib import Path

from pipeline.store.atomic import publish_new
from pipeline.store.fragment import INDEX_FOLDER
from schemas.errors import CacheNotFoundError, IndexCorruptError
from schemas.manifest import Manifest

MANIFEST_NAME = "manifest.json"

_MAX_BYTES = 2**20


def create_or_check(root: Path, manifest: Manifest) -> Manifest:
    """Begin the cache at ``root`` with ``manifest``, or see that it was begun with an equal one.

    Two processes may call this at once: one writes, both compare.

    Returns:
        The manifest on disk.

    Raises:
        CacheMismatchError: the cache was built with another configuration; each field is named.
        FormatVersionError: the cache has another format version.
        IndexCorruptError: the manifest on disk cannot be read.
        CacheError: the folder cannot be written.
    """
    path = root / MANIFEST_NAME
    if not path.exists():
        _refuse_orphaned_index(root)
        publish_new(path, [manifest.to_json().encode()])
    existing = read_manifest(root)
    existing.require_same(manifest, where=str(root))
    return existing


def _refuse_orphaned_index(root: Path) -> None:
    is_there = any((root / INDEX_FOLDER).glob("*.parquet"))
    if is_there and not (root / MANIFEST_NAME).exists():
        raise IndexCorruptError(
            f"{root} has an index and no {MANIFEST_NAME}: what made its videos is unknown. "
            "Restore the file, or build into an empty folder."
        )


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of the cache at ``root``.

    Raises:
        CacheNotFoundError: there is no cache.
        FormatVersionError: a format version this reader does not know.
        IndexCorruptError: not a manifest, or changed since it was written.
    """
    path = root / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheNotFoundError(
            f"no cache at {root}: {MANIFEST_NAME} is not there. "
            "Give the folder that tokenreel build wrote with --out."
        ) from error
    except OSError as error:
        raise IndexCorruptError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise IndexCorruptError(f"{path} is over {_MAX_BYTES} bytes long; it is not a manifest")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise IndexCorruptError(f"{path} is not UTF-8: {error}") from error
    return Manifest.from_json(text, source=str(path))
