"""``manifest.json``: written once, by whoever comes first, and equal for everybody after."""

from pipeline.storage import Storage
from pipeline.storage.base import TEMPORARY_SUFFIX
from pipeline.store.fragment import FRAGMENT_SUFFIX, INDEX_FOLDER
from pipeline.store.shard import SHARD_FOLDER
from schemas.errors import CacheError, CacheNotFoundError, IndexCorruptError
from schemas.manifest import Manifest

MANIFEST_NAME = "manifest.json"

_MAX_BYTES = 2**20

_LITTER = frozenset({".DS_Store", ".directory", "Thumbs.db", "desktop.ini", "lost+found"})
"""What systems leave in folders by themselves."""


def create_or_check(storage: Storage, manifest: Manifest) -> Manifest:
    """Begin a cache with ``manifest``, or see that it was begun with an equal one.

    Two processes may call this at once: one writes, both compare.

    Returns:
        The manifest that is there.

    Raises:
        CacheMismatchError: the cache was built with another configuration; each field is named.
        FormatVersionError: the cache has another format version.
        IndexCorruptError: its manifest cannot be read.
        CacheError: it cannot be written.
    """
    existing = find_manifest(storage)
    if existing is None:
        _refuse_orphaned_index(storage)
        storage.create(MANIFEST_NAME, [manifest.to_json().encode()])
        existing = read_manifest(storage)
    existing.require_same(manifest, where=storage.location)
    return existing


def _refuse_orphaned_index(storage: Storage) -> None:
    is_there = any(file.name.endswith(FRAGMENT_SUFFIX) for file in storage.files(INDEX_FOLDER))
    if is_there and find_manifest(storage) is None:
        raise IndexCorruptError(
            f"{storage.location} has an index and no {MANIFEST_NAME}: what made its videos is "
            "unknown. Restore the file, or build into an empty folder."
        )


def require_room_for_cache(storage: Storage) -> None:
    """See that a cache may begin here: nothing stands in the folder but what caches are made of.

    Raises:
        CacheError: it holds other files.
    """
    known = {MANIFEST_NAME, INDEX_FOLDER, SHARD_FOLDER, *_LITTER}
    names = [file.name for file in storage.files("")]
    others = [
        name
        for name in names
        if name not in known and not name.endswith(TEMPORARY_SUFFIX) and not name.startswith("._")
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise CacheError(
            f"{storage.location} is no cache and not empty: it holds "
            f"{', '.join(map(repr, others[:3]))}{more}. Give --out a new or empty folder, or that "
            "of an earlier build."
        )


def find_manifest(storage: Storage) -> Manifest | None:
    """The manifest of a cache, None where there is none yet; raises as ``read_manifest``."""
    try:
        return read_manifest(storage)
    except CacheNotFoundError:
        return None


def read_manifest(storage: Storage) -> Manifest:
    """Read the manifest of a cache.

    Raises:
        CacheNotFoundError: there is no cache.
        FormatVersionError: a format version this reader does not know.
        IndexCorruptError: not a manifest, or changed since it was written.
        CacheError: it cannot be read.
    """
    where = storage.where(MANIFEST_NAME)
    try:
        with storage.open_input(MANIFEST_NAME) as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheNotFoundError(
            f"no cache at {storage.location}: {MANIFEST_NAME} is not there. "
            "Give what tokenreel build got with --out."
        ) from error
    except OSError as error:
        raise CacheError(
            f"cannot read {where}: {error.strerror or error}. Check the permissions; for an object "
            "store also its credentials, region and endpoint."
        ) from error
    if len(data) > _MAX_BYTES:
        raise IndexCorruptError(f"{where} is over {_MAX_BYTES} bytes long; it is not a manifest")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise IndexCorruptError(f"{where} is not UTF-8: {error}") from error
    return Manifest.from_json(text, source=where)
