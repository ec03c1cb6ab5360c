"""One encoded video to the record that is committed: fuse, realign, pack."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline.encoders import VisualTokens
from pipeline.fusion import plan_fusion
from pipeline.positions import (
    MarkerIds,
    PromptStretch,
    frame_timestamps,
    prompt_stretch,
    timestamp_text,
)
from pipeline.store.commit import PendingVideo
from pipeline.store.record import encode_record, pack_record
from schemas.fusion import FusionConfig
from schemas.grid import PatchGeometry, TokenGrid
from schemas.video import SampledFrames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.fusion.plan import FusionPlan


def marker_ids(tokenizer: "PreTrainedTokenizerBase") -> MarkerIds:
    """Ids of the video markers in this tokenizer."""
    names = ("vision_start", "vision_end", "video_pad")
    ids: Any = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]
    return MarkerIds(*ids)


def tokenized_stretch(
    grid: TokenGrid,
    keep_index: torch.Tensor,
    seconds: Sequence[float],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_frame: int | None = None,
) -> PromptStretch:
    """The prompt stretch of one video with this tokenizer's timestamps and markers.

    Args:
        grid: the merged token grid of the whole video.
        keep_index: ``(N,)`` ascending grid indices of the kept tokens.
        seconds: per token frame, from ``frame_timestamps``.
        tokenizer: the model's own.
        first_frame: as in ``prompt_stretch``.
    """
    texts = [timestamp_text(value) for value in seconds]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return prompt_stretch(grid, keep_index, ids, marker_ids(tokenizer), first_frame=first_frame)


def assemble_pending(
    tokens: VisualTokens,
    sampled: SampledFrames,
    *,
    key: str,
    fusion: FusionConfig,
    patches: PatchGeometry,
    tokenizer: "PreTrainedTokenizerBase",
    fields: Mapping[str, Any],
) -> PendingVideo:
    """Fuse one video's tokens, place the survivors in the prompt, and pack the record.

    Args:
        tokens: all visual tokens, on any device.
        sampled: what was decoded; its frame indices give the timestamps.
        key: from ``pipeline.keys.feature_key``.
        fusion: how redundant tokens are fused.
        patches: the encoder's geometry.
        tokenizer: the model's own.
        fields: what the caller knows of the index row (id, path, times ...).

    Raises:
        FusionError: the method cannot do what was asked of these tokens.
        CacheError: features that are not finite.
    """
    started = time.perf_counter()
    plan = plan_fusion(tokens.embeddings, tokens.grid, fusion)
    features = torch.cat([plan.apply(layer) for layer in (tokens.embeddings, *tokens.deepstack)], 1)
    fuse_seconds = time.perf_counter() - started
    seconds = frame_timestamps(
        sampled.frame_indices, sampled.probe.fps, patches.temporal_patch_size
    )
    first_frame = plan.anchor_frame if fusion.order == "anchor_first" else None
    stretch = tokenized_stretch(
        tokens.grid, plan.keep_index, seconds, tokenizer, first_frame=first_frame
    )
    storage_index = plan.storage_index.cpu()
    record = pack_record(
        key=key,
        features=features,
        score=plan.score[plan.storage_order],
        grid_index=storage_index,
        prompt_index=stretch.columns_of(storage_index),
        input_ids=stretch.input_ids,
        position_ids=stretch.position_ids,
        match=plan.match_index,
    )
    return PendingVideo(
        {
            **fields,
            **_source_fields(sampled),
            **_token_fields(tokens, plan),
            "dtype": record.layout["features"].dtype,
            "next_position": stretch.next_position,
            "fuse_seconds": fuse_seconds,
        },
        record,
    )


def encode_pending(pending: PendingVideo, encoding: str) -> PendingVideo:
    """The same video with its feature rows stored in another way.

    Args:
        pending: as ``assemble_pending`` gives it.
        encoding: one of ``ENCODINGS``.

    Raises:
        ConfigError: no such encoding.
    """
    num_layers = 1 + pending.fields["num_deepstack"]
    record = encode_record(pending.record, encoding, num_layers=num_layers)
    return dataclasses.replace(pending, record=record)


def _token_fields(tokens: VisualTokens, plan: "FusionPlan") -> dict[str, Any]:
    return {
        "grid_frames": tokens.grid.frames,
        "grid_height": tokens.grid.height,
        "grid_width": tokens.grid.width,
        "tokens_before": tokens.grid.num_tokens,
        "tokens_after": plan.num_kept,
        "keep_ratio": plan.keep_ratio,
        "anchor_frame": plan.anchor_frame,
        "nested": plan.nested,
        "hidden_size": tokens.embeddings.shape[1],
        "num_deepstack": len(tokens.deepstack),
    }


def _source_fields(sampled: SampledFrames) -> dict[str, Any]:
    probe = sampled.probe
    return {
        "duration_seconds": probe.duration_seconds,
        "fps": probe.fps,
        "width": probe.width,
        "height": probe.height,
        "container": probe.container,
        "video_stream": probe.stream_index,
        "codec": probe.codec,
        "num_source_frames": probe.num_frames,
        "num_frames": len(sampled.frame_indices),
        "num_bad_packets": sampled.num_bad_packets,
        "num_rescaled_frames": sampled.num_rescaled_frames,
        "decoder": sampled.decoder,
        "decoder_version": sampled.decoder_version,
    }
