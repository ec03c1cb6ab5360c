"""Encoding "zstd" of feature rows, exact: bytes of like place are compressed together.

N stored rows, B bytes per row, C values per row, F frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import BoundsError, ChecksumError, ShapeError
from schemas.tokens import FRAME_ROWS

ZSTD_LEVEL = 1
"""Higher levels are slower and, on features, no smaller. Readers need not know it."""

MOST_SHRUNK = 2**15
"""zstd spends 4 bytes on each 128 KiB at least, so that no frame unpacks to more times itself."""


def compress_rows(
    rows: npt.NDArray[np.uint8], item_bytes: int
) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Compress rows without loss, ``FRAME_ROWS`` at a time, so that any prefix can be read alone.

    A frame holds one zstd stream for the first byte of all its values, then one for the second,
    and so on: exponents compress well when they stand together. Equal rows give equal bytes
    under one version of zstd.

    Args:
        rows: ``(N, B)`` uint8 in storage order.
        item_bytes: bytes per value, 2 or 4.

    Returns:
        The frames in turn, and ``(F,)`` int64 where each one ends.

    Raises:
        ShapeError: no row, or rows that are not whole values.
    """
    if rows.ndim != 2:
        raise ShapeError(f"rows have shape {rows.shape}, expected (N, B)")
    _require_values(len(rows), rows.shape[1], item_bytes)
    codec = _codec()
    frames = []
    for first in range(0, len(rows), FRAME_ROWS):
        values = rows[first : first + FRAME_ROWS].reshape(-1, item_bytes)
        planes = np.ascontiguousarray(values.T)
        frames.append(b"".join(codec.compress(plane, asbytes=True) for plane in planes))
    return b"".join(frames), np.cumsum([len(frame) for frame in frames], dtype=np.int64)


def check_frame_end(
    frame_end: npt.NDArray[np.int64], *, num_stored: int, row_bytes: int, item_bytes: int
) -> None:
    """Raise unless ``frame_end`` is one that ``compress_rows`` can give for rows of this shape.

    What passes bounds the bytes to read, which incompressible rows need at most, and the memory
    to take, ``MOST_SHRUNK`` times the frames at most.

    Raises:
        ShapeError: another number of frames, or rows that are not whole values.
        BoundsError: ends that do not ascend, or a frame too long or too short for its rows.
    """
    _require_values(num_stored, row_bytes, item_bytes)
    num_frames = -(-num_stored // FRAME_ROWS)
    if frame_end.dtype != np.int64 or frame_end.shape != (num_frames,):
        raise ShapeError(
            f"frame_end is {frame_end.dtype} {frame_end.shape}, expected int64 ({num_frames},): "
            f"{num_stored} rows in frames of {FRAME_ROWS}"
        )
    if frame_end[0] <= 0 or (frame_end[1:] <= frame_end[:-1]).any():
        raise BoundsError("frame_end does not ascend from above 0; its frames cannot be found")
    sizes = np.diff(frame_end, prepend=0).tolist()
    last_rows = num_stored - (num_frames - 1) * FRAME_ROWS
    for frame, size in enumerate(sizes):
        held = FRAME_ROWS if frame < num_frames - 1 else last_rows
        least, most = _frame_limits(held * row_bytes, item_bytes)
        if not least <= size <= most:
            raise BoundsError(
                f"frame {frame} has {size} bytes, expected {least} to {most} for its rows"
            )


def prefix_bytes(frame_end: npt.NDArray[np.int64], num_rows: int) -> int:
    """How many bytes of the compressed rows hold the first ``num_rows`` of them."""
    return int(frame_end[-(-num_rows // FRAME_ROWS) - 1])


def decompress_frame(
    frame: bytes | bytearray | memoryview, *, num_rows: int, row_bytes: int, item_bytes: int
) -> npt.NDArray[np.unsignedinteger]:
    """The values of one frame.

    Memory is taken for ``num_rows`` rows, whatever the frame claims. Damage that still
    decompresses may give other values: compare the rows with their digests.

    Args:
        frame: its bytes.
        num_rows: the rows that it holds.
        row_bytes: B.
        item_bytes: bytes per value, 2 or 4.

    Returns:
        ``(num_rows, C)`` little-endian integers of the values' bits.

    Raises:
        ShapeError: no row, or rows that are not whole values.
        ChecksumError: the frame does not decompress to these rows.
    """
    _require_values(num_rows, row_bytes, item_bytes)
    try:
        data = _codec().decompress(frame, decompressed_size=num_rows * row_bytes)
    except OSError as error:
        raise ChecksumError(f"{num_rows} rows cannot be decompressed: {error}") from error
    return _join_planes(np.frombuffer(data, np.uint8).reshape(item_bytes, num_rows, -1))


def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=ZSTD_LEVEL)


def _require_values(num_rows: int, row_bytes: int, item_bytes: int) -> None:
    if item_bytes not in (2, 4) or num_rows < 1 or row_bytes < 1 or row_bytes % item_bytes:
        raise ShapeError(
            f"{num_rows} rows of {row_bytes} bytes, expected at least one row of values of "
            f"{item_bytes} bytes each, which must be 2 or 4"
        )


def _frame_limits(num_bytes: int, item_bytes: int) -> tuple[int, int]:
    """Least and most bytes of a frame of ``num_bytes``: zstd adds 1/256 and 64 to a plane."""
    plane = num_bytes // item_bytes
    return item_bytes * (plane // MOST_SHRUNK), item_bytes * (plane + plane // 256 + 64)


def _join_planes(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger]:
    """``(item, n, values)`` bytes, lowest first, as ``(n, values)`` little-endian integers."""
    values: npt.NDArray[np.unsignedinteger] = planes[-1].astype(f"<u{len(planes)}")
    for plane in planes[-2::-1]:
        values <<= 8
        values |= plane
    return values
