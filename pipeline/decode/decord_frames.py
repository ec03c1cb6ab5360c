"""Wanted frames of a video that decord may be trusted with, in one batch."""

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.decode.timeline import Timeline
from schemas.errors import DecodeError

_EOF_RETRIES = "2048"
"""decord spins this often for a last frame that never comes; its own 10240 takes minutes."""


def decode_batch(
    path: str,
    timeline: Timeline,
    wanted: Sequence[int],
    *,
    threads: int,
    complaints: Callable[[], str],
) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames of the display indices ``wanted`` (ascending, none twice), one after another.

    decord's FFmpeg paints over damage and reports success; it does log the damage, so anything
    it logged refuses the batch.

    Args:
        path: the video.
        timeline: its scan, without objection to decord.
        wanted: display indices, ascending, none twice.
        threads: decoder threads.
        complaints: returns what native code wrote to stderr since the request began.

    Raises:
        DecodeError: "corrupt_frames", decord's frames are not to be trusted.
    """
    os.environ["DECORD_EOF_RETRY_MAX"] = _EOF_RETRIES
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    probe = timeline.probe
    try:
        reader = decord.VideoReader(path, num_threads=threads, fault_tol=0)
        num_frames = len(reader)
        if num_frames == probe.num_frames:
            batch = reader.get_batch(list(wanted)).asnumpy()
        # A reader goes on decoding in the background for as long as it lives.
        del reader
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        raise DecodeError("corrupt_frames", f"{path}: decord failed: {error}") from error
    if num_frames != probe.num_frames:
        raise DecodeError(
            "corrupt_frames",
            f"{path}: decord sees {num_frames} frames, the packets say {probe.num_frames}",
        )
    if complaint := complaints():
        raise DecodeError("corrupt_frames", f"{path}: decord complained: {complaint}")
    if batch.shape[1:] != (probe.height, probe.width, 3):
        raise DecodeError(
            "corrupt_frames",
            f"{path}: decord gives frames of shape {batch.shape[1:]}, expected "
            f"{(probe.height, probe.width, 3)}",
        )
    return iter(batch)
