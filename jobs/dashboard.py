"""The dashboard of a running Ray cluster, reached over HTTP: what the Ray Jobs API speaks to."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from jobs.ray_cluster import one_line
from schemas.errors import ConfigError, TokenreelError

ANSWER_SECONDS = 10.0

RAY_ERRORS = (RayError, RuntimeError, OSError, ValueError, KeyError)
"""What Ray's client raises: refused, out of reach (requests' errors are OSErrors), no dashboard."""

_HOST_AND_PORT = re.compile(r"[^/\s]+:\d+/?")

Answer = TypeVar("Answer")


def connect(address: str) -> JobSubmissionClient:
    """A client of the dashboard at ``http://host:port`` or ``host:port``; ``auto`` lets Ray look.

    Raises:
        ConfigError: the address has another form.
        TokenreelError: no dashboard answers there, or it does not accept this user.
    """
    if _HOST_AND_PORT.fullmatch(address):
        address = f"http://{address}"
    if address != "auto" and not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address!r} is not the address of a cluster: expected its dashboard, such as "
            "http://head:8265, or auto"
        )
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # the client tells of each upload and closed connection
    try:
        with _before_environment(address):
            return within(
                ANSWER_SECONDS, lambda: JobSubmissionClient(address, headers=_auth_headers())
            )
    except RAY_ERRORS as error:
        raise TokenreelError(
            f"cannot use a Ray dashboard at {address}: {one_line(error)}. Expected is what `ray "
            "start --head` names for `ray job submit`, such as http://head:8265"
        ) from error


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The answer to a call of Ray's client, which has no time limits of its own.

    Raises:
        TimeoutError: there was none in time; the call is left behind.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:  # raised where the answer is awaited
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None


def _auth_headers() -> dict[str, str]:
    """The token ``ray.init`` would find; where RAY_AUTH_MODE is set, Ray's client finds it."""
    if os.environ.get("RAY_AUTH_MODE"):
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        place = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        with suppress(OSError):
            token = Path(place).read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _before_environment(address: str) -> Iterator[None]:
    """Ray's client prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to what a person typed."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    if address != "auto":
        os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
