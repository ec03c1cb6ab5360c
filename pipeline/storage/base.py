"""What a cache asks of the place where it lies.

Names are relative, such as ``index/0123.parquet``. A file that has its name is whole; it is never
written to again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from schemas.errors import CacheError

if TYPE_CHECKING:
    import pyarrow as pa

TEMPORARY_SUFFIX = ".tmp"
"""Ending of files that are not committed; readers never look at them."""


_ABSENT = frozenset({None, *(errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)})
"""What ``OSError.errno`` is where a file is not there or not a file; None comes from no system."""


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` says that something cannot be read now, and nothing about what it holds."""
    return isinstance(error, OSError) and error.errno not in _ABSENT


@contextmanager
def errors_as_cache_error(deed: str, cure: str) -> Iterator[None]:
    """Turn an ``OSError`` while the cache is changed into one that says what to do.

    Args:
        deed: what is done, and where: "write /cache/index/0.parquet".
        cure: the first thing to do about it, without a full stop.

    Raises:
        CacheError: it could not be done.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot {deed}: {error.strerror or error}; what the cache held is untouched. "
            f"{cure}, then run the same command again."
        ) from error


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a folder lists: ``name`` without the folder; links and folders are not regular."""

    name: str
    num_bytes: int
    modified_ns: int
    is_regular: bool = True


class RangeReader(Protocol):
    """One open file, read by position."""

    @property
    def end(self) -> int | None:
        """How long the file is, in bytes, where that is known.

        An object store tells only when it sends fewer bytes than were announced.
        """
        ...

    def fill(self, buffers: Sequence[memoryview], position: int) -> int:
        """Fill ``buffers`` in turn from byte ``position`` on, as far as one read goes.

        Returns:
            The bytes read; 0 at the end of the file.

        Raises:
            OSError: they cannot be read.
        """
        ...

    def announce(self, position: int, num_bytes: int) -> None:
        """Say that these bytes are about to be read; on an object store they are fetched now.

        Raises:
            OSError: they cannot be fetched.
        """
        ...


class Storage(Protocol):
    """One cache's place. Objects of this kind may cross to other processes by pickle."""

    @property
    def location(self) -> str:
        """Path or URL, as ``open_storage`` takes it."""
        ...

    @property
    def can_rename(self) -> bool:
        """Whether a file can change its name in one step; ``rename`` and ``put_back`` need it."""
        ...

    @property
    def reads_at_once(self) -> int:
        """How many reads may well go on at the same time here."""
        ...

    def where(self, name: str = "") -> str:
        """Full path or URL of ``name``, for messages and for other programs."""
        ...

    def files(self, folder: str) -> list[StoredFile]:
        """What stands right in ``folder``, by name; nothing when there is no such folder.

        Raises:
            CacheError: it cannot be listed.
        """
        ...

    def stat(self, name: str) -> StoredFile:
        """What is known of one file; its ``name`` is as given.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be looked at.
        """
        ...

    def open_input(self, name: str) -> pa.NativeFile:
        """Open a whole file for Arrow.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        ...

    def open_range(self, name: str) -> AbstractContextManager[RangeReader]:
        """Open a file for reads by position.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be opened, or is no regular file.
        """
        ...

    def prefetch(self, name: str, position: int, num_bytes: int) -> None:
        """Begin to fetch bytes that will be asked for; returns at once, and never raises."""
        ...

    def create(self, name: str, chunks: Iterable[bytes | memoryview]) -> bool:
        """Give ``name`` the content ``chunks`` unless it exists; of two writers one wins.

        Returns:
            Whether this call created the file.

        Raises:
            CacheError: it cannot be written; ``name`` is as it was.
        """
        ...

    def replace(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Give ``name`` the content ``chunks``, whatever stood there before.

        For names made from the content: replacing a file by its equal is harmless, and mends it.

        Raises:
            CacheError: it cannot be written; ``name`` is as it was.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; it need not be there.

        Raises:
            OSError: it cannot be removed.
        """
        ...

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name; what bears that name is replaced.

        Raises:
            FileNotFoundError: it is gone.
            OSError: it cannot be renamed.
        """
        ...

    def put_back(self, name: str, old_name: str) -> None:
        """Give a file its old name again, unless a new file bears that by now; it is gone then.

        Raises:
            OSError: it cannot be renamed.
        """
        ...

    def touch(self, name: str) -> None:
        """Make a file young again; it need not be there.

        Raises:
            OSError: it cannot be done.
        """
        ...

    def flush(self, folder: str) -> None:
        """See to it that names given and taken in ``folder`` outlast a loss of power."""
        ...
