"""Ways of giving a video's tokens to a model: which are kept, and where they say they are."""

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from examples.toyworld.checkpoint import PATCHES
from examples.toyworld.scene import FRAMES_PER_SECOND, NUM_FRAMES
from pipeline.assemble import tokenized_stretch
from pipeline.fusion import plan_fusion
from pipeline.positions import frame_timestamps
from pipeline.store.video import CachedVideo
from schemas.fusion import FusionConfig

FAR = 4000
"""Positions before the video, as if much else had been said."""


@dataclass(frozen=True, slots=True)
class Setting:
    """``positions`` is one of ``POSITIONS``."""

    name: str
    fusion: FusionConfig
    positions: str = "realigned"

    def read(self, whole: CachedVideo, tokenizer: PreTrainedTokenizerBase) -> CachedVideo:
        """What a build with this fusion would have cached, from a video with all its tokens."""
        video = _fuse(whole, self.fusion_of(whole.video_id), tokenizer)
        return POSITIONS[self.positions](video)

    def fusion_of(self, video_id: str) -> FusionConfig:
        """ "random" draws for each video anew, so that intervals hold its luck too."""
        if self.fusion.method != "random":
            return self.fusion
        return dataclasses.replace(self.fusion, seed=zlib.crc32(video_id.encode()))


def _fuse(
    whole: CachedVideo, fusion: FusionConfig, tokenizer: PreTrainedTokenizerBase
) -> CachedVideo:
    plan = plan_fusion(whole.embeddings, whole.grid, fusion)
    seconds = frame_timestamps(
        np.arange(NUM_FRAMES), FRAMES_PER_SECOND, PATCHES.temporal_patch_size
    )
    stretch = tokenized_stretch(
        whole.grid,
        plan.keep_index,
        seconds,
        tokenizer,
        first_frame=plan.anchor_frame if fusion.order == "anchor_first" else None,
    )
    row_of = torch.empty(whole.grid.num_tokens, dtype=torch.int64)
    row_of[plan.storage_index] = torch.arange(plan.num_kept)
    rows = row_of[stretch.visual_grid_index]
    layers = (whole.embeddings, *whole.deepstack)
    return dataclasses.replace(
        whole,
        features=torch.cat([plan.apply(layer) for layer in layers], dim=1)[rows],
        coordinates=whole.coordinates[stretch.visual_grid_index],
        score=plan.score[plan.storage_order][rows],
        input_ids=stretch.input_ids,
        position_ids=stretch.position_ids.to(whole.position_ids.dtype),
        visual_index=stretch.visual_index,
        match=plan.match_index.to(whole.match.dtype),
    )


def _same(video: CachedVideo) -> CachedVideo:
    return video


def _moved(video: CachedVideo, positions: torch.Tensor, next_position: int) -> CachedVideo:
    row = dataclasses.replace(video.row, next_position=next_position)
    return dataclasses.replace(video, row=row, position_ids=positions)


def _renumbered(video: CachedVideo) -> CachedVideo:
    """0, 1, 2 ... on all three axes, as a model counts that is given no positions."""
    length = len(video.input_ids)
    positions = torch.arange(length, dtype=video.position_ids.dtype).expand(3, -1)
    return _moved(video, positions, length)


def _rounded(video: CachedVideo) -> CachedVideo:
    """The video's own positions in bfloat16, which holds whole numbers up to 256 only."""
    rounded = video.position_ids.to(torch.bfloat16).to(video.position_ids.dtype)
    return _moved(video, rounded, video.next_position)


def _far(video: CachedVideo) -> CachedVideo:
    return _moved(video, video.position_ids + FAR, video.next_position + FAR)


def _far_rounded(video: CachedVideo) -> CachedVideo:
    return _rounded(_far(video))


POSITIONS: dict[str, Callable[[CachedVideo], CachedVideo]] = {
    "realigned": _same,
    "renumbered": _renumbered,
    "bf16": _rounded,
    "far": _far,
    "far bf16": _far_rounded,
}
