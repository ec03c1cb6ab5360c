"""Inputs made on the spot: frames, checkpoints, and cached videos with chosen survivors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pipeline.assemble import marker_ids, tokenized_stretch
from pipeline.cache import CachedVideo
from pipeline.encoders import Qwen3VLEncoder, VisualTokens
from pipeline.encoders.tiny import WEIGHT_SCALE
from pipeline.positions import frame_timestamps
from pipeline.prefill import PrefillInputs
from pipeline.preprocess import normalize, patchify
from pipeline.store.head import Head
from pipeline.store.record import pack_record
from pipeline.store.video import assemble_video
from schemas.config import SamplingConfig
from schemas.fusion import FusionConfig
from schemas.index import IndexRow
from schemas.manifest import DecoderIdentity, Manifest

REPOSITORY = Path(__file__).parents[1]
SHARED_VIDEOS = REPOSITORY.parent / "shared" / "videos"
FPS = 25.0


def pattern_frames(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8 from integer arithmetic alone: the same on every machine."""
    size = num_frames * height * width * 3
    values = np.arange(size, dtype=np.uint64) + np.uint64(seed * 7919)
    mixed = (values * np.uint64(2654435761)) >> np.uint64(13)
    return (mixed % np.uint64(256)).astype(np.uint8).reshape(num_frames, height, width, 3)


@dataclass(frozen=True)
class EncodedClip:
    """A clip with everything a test compares: pixels, tokens and source frame indices."""

    frames: torch.Tensor
    tokens: VisualTokens
    frame_indices: np.ndarray
    encoder: Qwen3VLEncoder

    @property
    def grid_thw(self) -> list[int]:
        merge = self.encoder.patches.spatial_merge_size
        grid = self.tokens.grid
        return [grid.frames, grid.height * merge, grid.width * merge]

    @property
    def pixel_values(self) -> torch.Tensor:
        return normalize(patchify(self.frames, self.encoder.patches), self.encoder.preprocess)

    def cached(self, keep: torch.Tensor, *, first_frame: int | None = None) -> CachedVideo:
        """This clip as the loader hands it out when the tokens in ``keep`` survived."""
        tokenizer, tokens = self.encoder.tokenizer, self.tokens
        seconds = frame_timestamps(
            self.frame_indices, FPS, self.encoder.patches.temporal_patch_size
        )
        stretch = tokenized_stretch(tokens.grid, keep, seconds, tokenizer, first_frame=first_frame)
        features = torch.cat([tokens.embeddings, *tokens.deepstack], dim=1)[keep]
        columns = stretch.columns_of(keep)
        record = pack_record(
            key=f"{len(keep):064x}",
            features=features,
            score=torch.zeros(len(keep)),
            grid_index=keep,
            prompt_index=columns,
            input_ids=stretch.input_ids,
            position_ids=stretch.position_ids,
            match=torch.arange(tokens.grid.num_tokens),
        )
        row = IndexRow(
            video_id=f"clip-{len(keep)}",
            path="clip.mp4",
            status="ok",
            fingerprint="0" * 64,
            size_bytes=1,
            modified_ns=1,
            created_ns=1,
            writer="test",
            grid_frames=tokens.grid.frames,
            grid_height=tokens.grid.height,
            grid_width=tokens.grid.width,
            tokens_after=len(keep),
            hidden_size=tokens.embeddings.shape[1],
            num_deepstack=len(tokens.deepstack),
            dtype=record.layout["features"].dtype,
            next_position=stretch.next_position,
            key=record.key,
            shard="0" * 64,
            offset=0,
            num_bytes=record.layout.num_bytes,
            head_digest=record.head_digest,
            layout=record.layout,
        )
        order = torch.argsort(columns)
        head = Head.from_bytes(record.head, record.layout)
        return assemble_video(
            row, self._manifest, head, features[order], order.numpy(), bytes_read=0
        )

    @property
    def _manifest(self) -> Manifest:
        return Manifest(
            encoder=self.encoder.identity,
            sampling=SamplingConfig(),
            preprocess=self.encoder.preprocess,
            decode=DecoderIdentity("auto", {}),
            fusion=FusionConfig(),
        )

    def cached_whole(self) -> CachedVideo:
        return self.cached(torch.arange(self.tokens.grid.num_tokens))


def encode_clip(
    encoder: Qwen3VLEncoder,
    num_frames: int,
    height: int,
    width: int,
    *,
    seed: int,
    stride: int = 10,
) -> EncodedClip:
    frames = torch.from_numpy(pattern_frames(num_frames, height, width, seed))
    indices = np.arange(num_frames, dtype=np.int64) * stride
    return EncodedClip(frames, encoder.encode([frames])[0], indices, encoder)


def some_tokens(clip: EncodedClip, *, seed: int, share: float = 0.4) -> torch.Tensor:
    """A random choice of survivors that leaves token frame 1 (if there is one) without any."""
    grid = clip.tokens.grid
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.nonzero(torch.rand(grid.num_tokens, generator=generator) < share).flatten()
    return chosen[chosen // grid.tokens_per_frame != 1]


def model_inputs(clips: Sequence[EncodedClip], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model's own processor would give for the uncompressed prompt ``input_ids``."""
    tokenizer: PreTrainedTokenizerBase = clips[0].encoder.tokenizer
    is_video = input_ids == marker_ids(tokenizer).video_pad
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values_videos": torch.cat([clip.pixel_values for clip in clips]),
        "video_grid_thw": torch.tensor([clip.grid_thw for clip in clips]),
        "mm_token_type_ids": is_video.int() * 2,
    }


def logits_with_hidden(model: Any, full: PrefillInputs, is_hidden: torch.Tensor) -> torch.Tensor:
    """Logits of the columns in sight, the hidden ones kept from everybody by a 4-D mask."""
    lowest = torch.finfo(model.dtype).min
    mask = torch.full((len(is_hidden), len(is_hidden)), lowest, dtype=model.dtype).triu(1)
    mask[:, is_hidden] = lowest
    mask.fill_diagonal_(0)
    logits: torch.Tensor = model(
        input_ids=full.input_ids,
        position_ids=full.position_ids,
        attention_mask=mask[None, None],
        mm_encoder_outputs=full["mm_encoder_outputs"],
    ).logits
    return logits[0, ~is_hidden]


def hybrid_model(tokenizer: PreTrainedTokenizerBase):
    """A tiny Qwen3.5: every other layer is linear attention, whose KV cache cannot be cropped."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    ids = marker_ids(tokenizer)
    config = Qwen3_5Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_interleaved": True,
                "mrope_section": [2, 1, 1],
                "partial_rotary_factor": 0.5,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 16,
            "num_position_embeddings": 2304,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=ids.video_pad,
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3_5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(WEIGHT_SCALE)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
