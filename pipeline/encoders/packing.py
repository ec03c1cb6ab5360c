"""Which token frames of which videos go into one encoder call.

Vision attention of Qwen3-VL stays inside one token frame, so a call may hold any set of token
frames: a long video is spread over several calls, short videos share one.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """Token frames ``first`` to ``last`` (exclusive) of the video at ``video`` in the batch."""

    video: int
    first: int
    last: int


def plan_calls(videos: Sequence[tuple[int, int]], *, max_patches: int) -> list[list[FrameSpan]]:
    """Cut and pack videos into calls of at most ``max_patches`` patches, order kept.

    A single token frame larger than the limit gets a call of its own.

    Args:
        videos: per video (token frames, patches per token frame).
        max_patches: the limit of one call.
    """
    calls: list[list[FrameSpan]] = []
    room = 0
    for video, (num_frames, patches_per_frame) in enumerate(videos):
        first = 0
        while first < num_frames:
            fitting = room // patches_per_frame
            if fitting == 0:
                calls.append([])
                room = max(max_patches, patches_per_frame)
                fitting = room // patches_per_frame
            last = min(num_frames, first + fitting)
            calls[-1].append(FrameSpan(video, first, last))
            room -= (last - first) * patches_per_frame
            first = last
    return calls
