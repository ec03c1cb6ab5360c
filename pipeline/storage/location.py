"""Locations as people write them: a path, or the URL of an object store."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from schemas.errors import ConfigError

Location = str | os.PathLike[str]
"""A path, or the URL of an object store."""

REMOTE_SCHEMES = ("s3", "gs")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def scheme_of(location: str) -> str:
    """The scheme of a URL in lower case; empty for a path."""
    found = _SCHEME.match(location)
    return found[1].lower() if found else ""


def is_remote(location: str) -> bool:
    """Whether ``location`` is the URL of an object store that this project reads."""
    return scheme_of(location) in REMOTE_SCHEMES


def open_storage(location: Location) -> Storage:
    """The place that ``location`` names: a path, ``file://``, ``s3://`` or ``gs://``.

    Nothing is read yet.

    Raises:
        ConfigError: no text or path, another kind of URL, one without a bucket, or a path that no
            file can have.
    """
    if not isinstance(location, str | os.PathLike):
        raise ConfigError(f"{location!r} is no place of a cache; expected a folder or URL as text")
    text = os.fspath(location)
    if not isinstance(text, str):
        raise ConfigError(f"{text!r} is no place of a cache; expected text, not bytes")
    scheme = scheme_of(text)
    if any(text.startswith(f"{remote}:/") for remote in REMOTE_SCHEMES) and not scheme:
        raise ConfigError(
            f"{text!r} is no URL: two slashes follow the colon. A pathlib.Path drops one of them; "
            "give the URL as text."
        )
    if scheme in REMOTE_SCHEMES:
        from pipeline.storage.objects import ObjectStorage

        return ObjectStorage(text)
    return LocalStorage(_possible(Path(local_path(text) if scheme else text)))


def _possible(path: Path) -> Path:
    try:
        path.lstat()
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is no path: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(
                f"the name of {str(path)!r} is too long; give the cache a shorter one"
            ) from error
    return path


def local_path(url: str) -> str:
    """The path that a ``file://`` URL names.

    Raises:
        ConfigError: a URL of another kind, or of another host.
    """
    parts = urlsplit(url)
    known = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
    if parts.scheme.lower() != "file":
        raise ConfigError(f"{url!r} is neither a path nor one of {known}, file://")
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is not of the form file:///absolute/path; give that, or a path")
    return unquote(parts.path)
