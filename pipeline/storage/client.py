"""The client of an object store: how it is set up, and what its errors say."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import ObjectStore

MAX_RETRIES = 8
RETRY_SECONDS = 120.0
"""After this long, or this often, a request has failed; the wait grows from 0.1 s to 15 s."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

_ROLE_PATHS = re.compile("/latest/(api/token|meta-data/)|/computeMetadata/")
"""Where the client asks the machine for its role: the last thing it tries for credentials."""

_GIVE_CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or, where boto3 is installed, "
    "AWS_PROFILE to a profile of ~/.aws",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the path of a key file",
}


def connect(url: str) -> ObjectStore:
    """A client for the bucket and prefix of ``url``.

    Endpoint, region and credentials come from the environment (``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ACCESS_KEY_ID`` ..., ``GOOGLE_APPLICATION_CREDENTIALS``), from the
    machine's role, or from a profile of ``~/.aws`` where boto3 is installed.

    Raises:
        ConfigError: no bucket, or settings the client refuses.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    if not rest.partition("/")[0]:
        raise ConfigError(f"{url!r} names no bucket; expected {scheme}://bucket/prefix")
    if any(letter in rest for letter in "#?%"):
        raise ConfigError(f"{url!r} holds one of # ? %, which no prefix of a cache may")
    # A whole video may take longer than any limit; what must not happen is that nothing comes.
    client: dict[str, Any] = {
        "timeout": timedelta(days=1),
        "read_timeout": timedelta(seconds=30),
    }
    settings: dict[str, Any] = {"client_options": client}
    if scheme.lower() == "s3":
        _set_up_s3(settings, client)
    try:
        return from_url(
            url,
            retry_config={
                "max_retries": MAX_RETRIES,
                "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            },
            **settings,
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"cannot use {url!r}: {first_line(error)}") from error


def _set_up_s3(settings: dict[str, Any], client: dict[str, Any]) -> None:
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    if endpoint:
        settings["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    has_profile = "AWS_PROFILE" in os.environ or (Path.home() / ".aws" / "credentials").is_file()
    if has_profile and "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3"):
        settings["credential_provider"] = _profile_credentials()


def _profile_credentials() -> Boto3CredentialProvider:
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"no credentials in the environment, and no profile gives any: {first_line(error)}. "
            f"{_GIVE_CREDENTIALS['s3']}."
        ) from error


@contextmanager
def errors_as_os_error(url: str) -> Iterator[None]:
    """Turn the client's errors into ``OSError`` with one line; a missing object stays missing."""
    from obstore.exceptions import BaseError, PermissionDeniedError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", url) from error
    except PermissionDeniedError as error:
        raise PermissionError(errno.EACCES, first_line(error), url) from error
    except (BaseError, ValueError) as error:
        raise OSError(errno.EIO, _reason(error, url), url) from error


def _reason(error: Exception, url: str) -> str:
    """What is wrong, in one line; where credentials are, how to give them."""
    reason = first_line(error)
    if not _ROLE_PATHS.search(reason):
        return reason
    cure = _GIVE_CREDENTIALS[url.partition("://")[0].lower()]
    return f"no credentials in the environment, and none from this machine's role. {cure}"


def first_line(error: Exception) -> str:
    """What a client's error says before its debug output."""
    return str(error).partition("\n")[0].strip() or type(error).__name__
