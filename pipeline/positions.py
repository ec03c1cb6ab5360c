"""Where the survivors stand: coordinates, the video's stretch of the prompt, and M-RoPE ids.

A token keeps the position it had in the uncompressed prompt; timestamps and markers of every token
frame stay, even where no token survived. The rules are ``Qwen3VLProcessor.replace_video_token`` and
``Qwen3VLModel.get_rope_index`` of transformers 5. Dimension key: N tokens, L prompt columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.errors import GridMismatchError
from schemas.grid import TokenGrid


@dataclass(frozen=True, slots=True)
class MarkerIds:
    """Token ids that frame a video in the prompt."""

    vision_start: int
    vision_end: int
    video_pad: int


@dataclass(frozen=True, slots=True)
class PromptStretch:
    """One video's own part of a prompt; positions count from 0.

    ``input_ids`` is ``(L,)`` int64, ``position_ids`` ``(3, L)`` int32 in the order t, y, x;
    ``visual_index`` ``(N,)`` int64 names the columns that hold visual tokens, in prompt order, and
    ``visual_grid_index`` ``(N,)`` int64 the token of the grid each of them holds. The text after
    the video continues at ``next_position``.
    """

    input_ids: Tensor
    position_ids: Tensor
    visual_index: Tensor
    visual_grid_index: Tensor
    next_position: int

    def columns_of(self, grid_index: Tensor) -> Tensor:
        """Prompt columns of kept tokens named by their grid index, ``(N,)`` -> ``(N,)`` int64."""
        order = torch.argsort(self.visual_grid_index)
        place = torch.searchsorted(self.visual_grid_index[order], grid_index)
        return self.visual_index[order][place]


def coordinates(grid_index: Tensor, grid: TokenGrid) -> Tensor:
    """``(N,)`` grid indices to ``(N, 3)`` int32 coordinates (t, y, x) on the merged grid."""
    t = torch.div(grid_index, grid.tokens_per_frame, rounding_mode="floor")
    inside = grid_index % grid.tokens_per_frame
    y = torch.div(inside, grid.width, rounding_mode="floor")
    return torch.stack([t, y, inside % grid.width], dim=1).to(torch.int32)


def frame_timestamps(
    frame_indices: npt.NDArray[np.int64], fps: float, temporal_patch_size: int
) -> list[float]:
    """Seconds shown before each token frame: the mean of its first and last source frame.

    ``Qwen3VLProcessor._calculate_timestamps``: index / fps, not presentation times.
    """
    seconds = [int(index) / fps for index in frame_indices]
    seconds += [seconds[-1]] * (-len(seconds) % temporal_patch_size)
    return [
        (seconds[first] + seconds[first + temporal_patch_size - 1]) / 2
        for first in range(0, len(seconds), temporal_patch_size)
    ]


def timestamp_text(seconds: float) -> str:
    """The text before a token frame, as Qwen3-VL was trained on it."""
    return f"<{seconds:.1f} seconds>"


def prompt_stretch(
    grid: TokenGrid,
    keep_index: Tensor,
    timestamp_ids: Sequence[Sequence[int]],
    markers: MarkerIds,
    *,
    first_frame: int | None = None,
) -> PromptStretch:
    """Build the stretch of one video from the tokens it keeps.

    Args:
        grid: the merged token grid of the whole video.
        keep_index: ``(N,)`` ascending grid indices of the kept tokens.
        timestamp_ids: per token frame, the ids of its timestamp text.
        markers: ids of the markers and the placeholder.
        first_frame: token frame placed before all others (``anchor_first``); None is chronological.

    Raises:
        GridMismatchError: another number of timestamps than token frames, or an index off the grid.
    """
    keep = keep_index.cpu()
    if len(timestamp_ids) != grid.frames:
        raise GridMismatchError(
            f"{len(timestamp_ids)} timestamps for {grid.frames} token frames; expected one each"
        )
    if len(keep) and not 0 <= int(keep[0]) <= int(keep[-1]) < grid.num_tokens:
        raise GridMismatchError(
            f"kept tokens reach beyond the grid {grid}: {keep[0]} .. {keep[-1]}"
        )
    blocks, position = [], 0
    bounds = torch.searchsorted(keep, torch.arange(grid.frames + 1) * grid.tokens_per_frame)
    for frame in range(grid.frames):
        kept = keep[bounds[frame] : bounds[frame + 1]]
        blocks.append(_frame_block(grid, kept, timestamp_ids[frame], markers, position))
        position += len(timestamp_ids[frame]) + 2 + max(grid.height, grid.width)
    if first_frame is not None:
        blocks.insert(0, blocks.pop(first_frame))
    input_ids = torch.cat([block[0] for block in blocks])
    grid_index = torch.cat([block[2] for block in blocks])
    visual_index = torch.nonzero(grid_index >= 0).flatten()
    return PromptStretch(
        input_ids=input_ids,
        position_ids=torch.cat([block[1] for block in blocks], dim=1),
        visual_index=visual_index,
        visual_grid_index=grid_index[visual_index],
        next_position=position,
    )


def _frame_block(
    grid: TokenGrid,
    kept: Tensor,
    timestamp_ids: Sequence[int],
    markers: MarkerIds,
    position: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and grid indices (-1 for text) of one token frame's columns."""
    before = [*timestamp_ids, markers.vision_start]
    start = position + len(before)
    ids = torch.tensor([*before, *[markers.video_pad] * len(kept), markers.vision_end])
    spot = coordinates(kept, grid).T
    spot[0] = 0
    text = torch.arange(position, start, dtype=torch.int32).expand(3, -1)
    end = torch.full((3, 1), start + max(grid.height, grid.width), dtype=torch.int32)
    positions = torch.cat([text, spot + start, end], dim=1)
    text_columns = torch.full((len(before),), -1)
    return ids, positions, torch.cat([text_columns, kept, torch.tensor([-1])])
