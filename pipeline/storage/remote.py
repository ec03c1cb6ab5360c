"""Files of object stores by their URL: listed, looked at, read and fetched."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage.client import connect, errors_as_os_error
from pipeline.storage.location import Location, is_remote
from pipeline.storage.objects import modified_ns

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

CHUNK_BYTES = 8 * 2**20

_NUM_LOOKERS = 32
_LISTED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object: its URL, bytes, and time of change in ns since 1970."""

    url: str
    num_bytes: int
    modified_ns: int


def split_url(url: str) -> tuple[str, str]:
    """The bucket's URL, and the key as it is: nothing in it is an escape.

    >>> split_url("s3://bucket/a b/50%.mp4")
    ('s3://bucket', 'a b/50%.mp4')
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme.lower()}://{bucket}", key


def list_files(url: str) -> Iterator[RemoteFile]:
    """Every object below the prefix ``url``, at any depth, in no order.

    Raises:
        OSError: the store cannot be listed.
        ConfigError: no bucket.
    """
    import obstore

    bucket, key = split_url(url)
    with errors_as_os_error(url):
        for entries in obstore.list(_client(bucket), key or None, chunk_size=_LISTED_AT_ONCE):
            for entry in entries:
                yield _file(bucket, entry)


def stat_file(url: str) -> RemoteFile:
    """One object, by one HEAD request.

    Raises:
        FileNotFoundError: there is none.
        OSError: the store does not answer.
        ConfigError: no bucket.
    """
    import obstore

    bucket, key = split_url(url)
    if not key:
        raise FileNotFoundError(None, "a bucket is no file", url)
    with errors_as_os_error(url):
        return _file(bucket, obstore.head(_client(bucket), key))


def stat_files(urls: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """The bytes and time of change of many objects, several at a time; -1 where there is none.

    Raises:
        OSError: the store does not answer.
        ConfigError: no bucket.
    """

    def look(url: str) -> tuple[int, int]:
        try:
            file = stat_file(url)
        except FileNotFoundError:
            return -1, -1
        return file.num_bytes, file.modified_ns

    with ThreadPoolExecutor(_NUM_LOOKERS) as pool:
        yield from zip(urls, pool.map(look, urls), strict=True)


def read_chunks(url: str) -> Iterator[memoryview]:
    """The bytes of an object, by one request.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read to its end.
    """
    import obstore

    bucket, key = split_url(url)
    with errors_as_os_error(url):
        for chunk in obstore.get(_client(bucket), key).stream(min_chunk_size=CHUNK_BYTES):
            yield memoryview(chunk)


def file_digest(location: Location) -> str:
    """sha256 of the bytes of a file or object, in hex.

    Raises:
        OSError: it cannot be read.
    """
    if not is_remote(os.fspath(location)):
        with Path(location).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for chunk in read_chunks(os.fspath(location)):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def local_copy(location: str, *, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """A path where the file can be read: its own, or that of a copy that lasts as long as this.

    Args:
        location: a path, or the URL of an object.
        is_wanted: asked now and then while copying.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: it cannot be fetched, or there is no room in the folder for temporary files.
        InterruptedError: the copy was not wanted any more.
    """
    if not is_remote(location):
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="tokenreel-") as folder:
        path = Path(folder) / f"video{os.path.splitext(location)[1]}"  # noqa: PTH122 - of a URL
        with path.open("xb") as file:
            for chunk in read_chunks(location):
                if not is_wanted():
                    raise InterruptedError(f"{location} is not wanted any more")
                file.write(chunk)
        yield str(path)


def _file(bucket: str, entry: ObjectMeta) -> RemoteFile:
    return RemoteFile(f"{bucket}/{entry['path']}", entry["size"], modified_ns(entry))


@lru_cache(maxsize=16)
def _client(bucket: str) -> ObjectStore:
    return connect(bucket)
