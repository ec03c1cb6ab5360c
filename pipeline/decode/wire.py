"""Messages between a reader and its decode child: length, then JSON, over a Unix socket."""

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct("<I")


def send_message(channel: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message; open file descriptors travel with it."""
    body = json.dumps(message).encode("ascii")
    packed = _LENGTH.pack(len(body)) + body
    if fds:
        sent = socket.send_fds(channel, [packed], list(fds))
        packed = packed[sent:]
    channel.sendall(packed)


def receive_message(
    channel: socket.socket, *, max_fds: int = 0, timeout_seconds: float | None = None
) -> tuple[Message, list[int]]:
    """Receive one message and the descriptors sent with it.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: no whole message within ``timeout_seconds``.
    """
    ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    header, fds = _receive_exactly(channel, _LENGTH.size, max_fds, ends)
    body, _ = _receive_exactly(channel, _LENGTH.unpack(header)[0], 0, ends)
    return json.loads(body), fds


def _receive_exactly(
    channel: socket.socket, num_bytes: int, max_fds: int, ends: float | None
) -> tuple[bytes, list[int]]:
    data, fds = bytearray(), []
    while len(data) < num_bytes:
        if ends is not None:
            # A timeout of zero would mean "do not block", which raises another error.
            channel.settimeout(max(ends - time.monotonic(), 1e-6))
        try:
            part, new_fds, _, _ = socket.recv_fds(channel, num_bytes - len(data), max_fds)
        except ConnectionError as error:
            raise EOFError("the connection broke") from error
        if not part:
            raise EOFError("the other side is gone")
        data += part
        fds += new_fds
    return bytes(data), fds
