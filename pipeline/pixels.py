"""Asking a model from a video's pixels, as is done without a cache."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.assemble import marker_ids, tokenized_stretch
from pipeline.decode import FrameReader
from pipeline.positions import frame_timestamps
from pipeline.prefill import split_prompt
from pipeline.preprocess import normalize, patchify

if TYPE_CHECKING:
    from pipeline.encoders import Qwen3VLEncoder


def pixel_inputs(
    path: str | Path, reader: FrameReader, encoder: "Qwen3VLEncoder", question: str
) -> dict[str, Tensor]:
    """Decode a video into what ``model.generate`` takes: no token is fused, nothing is kept.

    Args:
        path: of the video.
        reader: samples its frames.
        encoder: whose preprocessing and tokenizer are used; it encodes nothing here.
        question: about the video.

    Returns:
        ``input_ids`` and ``attention_mask`` (1, L), ``pixel_values_videos`` (P, X) float32,
        ``video_grid_thw`` (1, 3) and ``mm_token_type_ids`` (1, L).

    Raises:
        DecodeError: the video cannot be decoded.
        PrefillError: the question cannot be asked, see ``build_prefill``.
    """
    sampled = reader.read(path, resize=encoder.resize)
    frames = torch.from_numpy(sampled.frames)
    grid = encoder.patches.token_grid(*frames.shape[:3])
    temporal, merge = encoder.patches.temporal_patch_size, encoder.patches.spatial_merge_size
    seconds = frame_timestamps(sampled.frame_indices, sampled.probe.fps, temporal)
    stretch = tokenized_stretch(grid, torch.arange(grid.num_tokens), seconds, encoder.tokenizer)
    before, after = split_prompt(encoder.tokenizer, question, num_videos=1)
    input_ids = torch.cat([torch.tensor(before), stretch.input_ids, torch.tensor(after)])[None]
    is_video = input_ids == marker_ids(encoder.tokenizer).video_pad
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values_videos": normalize(patchify(frames, encoder.patches), encoder.preprocess),
        "video_grid_thw": torch.tensor([[grid.frames, grid.height * merge, grid.width * merge]]),
        "mm_token_type_ids": is_video.int() * 2,
    }
