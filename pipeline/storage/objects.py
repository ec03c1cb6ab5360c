"""A cache under a prefix of an object store, through one client: obstore.

Each operation is one request, tried again with back-off by the client. Objects appear whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipeline.storage.base import TEMPORARY_SUFFIX, StoredFile, errors_as_cache_error
from pipeline.storage.client import connect, errors_as_os_error
from pipeline.storage.prefetched import PrefetchedRanges
from schemas.errors import CacheError

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 4


class ObjectStorage:
    """The prefix ``location`` of a bucket."""

    can_rename = False
    reads_at_once = 16

    def __init__(self, location: str) -> None:
        self._connected = connect(location)
        self.location = location.rstrip("/")
        self._pid = os.getpid()
        self._prefetched = PrefetchedRanges()

    @property
    def _client(self) -> ObjectStore:
        if os.getpid() != self._pid:  # its threads stayed behind: every request would hang
            raise CacheError(
                f"{self.location} was opened before this process was forked off. Open it in each "
                "process, or start processes with spawn."
            )
        return self._connected

    def __repr__(self) -> str:
        return f"ObjectStorage({self.location!r})"

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        return ObjectStorage, (self.location,)

    def where(self, name: str = "") -> str:
        """The full URL of ``name``."""
        return f"{self.location}/{name}" if name else self.location

    def files(self, folder: str) -> list[StoredFile]:
        """The objects right below ``folder``."""
        import obstore

        try:
            with errors_as_os_error(self.where(folder)):
                found = obstore.list_with_delimiter(self._client, folder)["objects"]
        except OSError as error:
            raise CacheError(f"cannot list {self.where(folder)}: {error.strerror}") from error
        files = [_listed(entry["path"].rpartition("/")[2], entry) for entry in found]
        return sorted(files, key=lambda file: file.name)

    def stat(self, name: str) -> StoredFile:
        """One HEAD request."""
        import obstore

        with errors_as_os_error(self.where(name)):
            return _listed(name, obstore.head(self._client, name))

    def open_input(self, name: str) -> pa.NativeFile:
        """Fetch a whole object, in one request."""
        import obstore
        import pyarrow as pa

        with errors_as_os_error(self.where(name)):
            data = obstore.get(self._client, name).buffer()
        return pa.BufferReader(pa.py_buffer(data))

    @contextmanager
    def open_range(self, name: str) -> Iterator[ObjectRange]:
        """No request yet: the first is for bytes."""
        yield ObjectRange(self, name)

    def prefetch(self, name: str, position: int, num_bytes: int) -> None:
        """Fetch a range in the background; the read that announces just this range takes it."""
        wanted = (name, position, num_bytes)
        self._prefetched.start(wanted, lambda: self._fetch(*wanted))

    def fetch(self, name: str, position: int, num_bytes: int) -> memoryview:
        """These bytes, or as many of them as the object has, by one range request.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: they cannot be fetched.
        """
        with suppress(OSError):  # a second try may find it
            waiting = self._prefetched.take((name, position, num_bytes))
            if waiting is not None:
                return waiting
        return self._fetch(name, position, num_bytes)

    def _fetch(self, name: str, position: int, num_bytes: int) -> memoryview:
        import obstore
        from obstore.exceptions import GenericError

        with errors_as_os_error(self.where(name)):
            try:
                found = obstore.get_range(self._client, name, start=position, length=num_bytes)
            except GenericError:
                if position < obstore.head(self._client, name)["size"]:
                    raise
                return memoryview(b"")  # the object ends before the first byte
        return memoryview(found).cast("B")

    def create(self, name: str, chunks: Iterable[bytes | memoryview]) -> bool:
        """One conditional PUT (``If-None-Match: *``)."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors_about(name):
            try:
                obstore.put(
                    self._client, name, b"".join(chunks), mode="create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
            return True

    def replace(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """One PUT, in parts where it is long; until the last part nothing is visible."""
        import obstore

        with self._errors_about(name):
            obstore.put(
                self._client,
                name,
                iter(chunks),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def remove(self, name: str) -> None:
        """Remove an object; it need not be there."""
        import obstore

        with errors_as_os_error(self.where(name)), suppress(FileNotFoundError):
            obstore.delete(self._client, name)

    def rename(self, name: str, new_name: str) -> None:
        """Not here: object stores copy and delete, which is two steps."""
        raise NotImplementedError(f"{self.location} cannot rename {name} to {new_name}")

    def put_back(self, name: str, old_name: str) -> None:
        """Not here, as ``rename``."""
        raise NotImplementedError(f"{self.location} cannot rename {name} to {old_name}")

    def touch(self, name: str) -> None:
        """Copy an object aside and back, inside the store: its time of change becomes now."""
        import obstore

        aside = f"{name}{TEMPORARY_SUFFIX}"
        with suppress(FileNotFoundError), errors_as_os_error(self.where(name)):
            obstore.copy(self._client, name, aside)
            obstore.copy(self._client, aside, name)
            obstore.delete(self._client, aside)

    def flush(self, folder: str) -> None:
        """Nothing to do: what the store has accepted is durable."""

    @contextmanager
    def _errors_about(self, name: str) -> Iterator[None]:
        where = self.where(name)
        with (
            errors_as_cache_error(f"write {where}", "Correct the access"),
            errors_as_os_error(where),
        ):
            yield


def _listed(name: str, entry: ObjectMeta) -> StoredFile:
    return StoredFile(name, entry["size"], modified_ns(entry))


def modified_ns(entry: ObjectMeta) -> int:
    """When an object was written, in ns since 1970: whole seconds, as a HEAD request tells it."""
    return int(entry["last_modified"].timestamp()) * 10**9


class ObjectRange:
    """One object, whose announced bytes are fetched by one range request.

    Attributes:
        end: how long the object is, known once it sent less than was asked.
    """

    def __init__(self, storage: ObjectStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._begin = 0
        self._fetched = memoryview(b"")
        self.end: int | None = None

    def announce(self, position: int, num_bytes: int) -> None:
        """Fetch these bytes now, or as many as the object has."""
        self._fetched = self._storage.fetch(self._name, position, num_bytes)
        self._begin = position
        if len(self._fetched) < num_bytes:
            self.end = position + len(self._fetched)

    def fill(self, buffers: Sequence[memoryview], position: int) -> int:
        """Copy from what was announced; what was not is fetched."""
        if not self._begin <= position < self._begin + len(self._fetched):
            self.announce(position, sum(map(len, buffers)))
        source = self._fetched[position - self._begin :]
        taken = 0
        for buffer in buffers:
            part = source[taken : taken + len(buffer)]
            buffer[: len(part)] = part
            taken += len(part)
            if len(part) < len(buffer):
                break
        return taken
