"""The vision encoder of Qwen3-VL, dense and mixture-of-experts.

Only the vision tower is loaded. It is called as ``Qwen3VLModel.get_video_features`` calls it, on
whole token frames, in calls of bounded size.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionModel

from pipeline.dtypes import STORAGE_DTYPES
from pipeline.encoders.checkpoint import (
    check_markers,
    digest_tokenizer,
    first_line,
    load_tokenizer,
    quiet_loading,
)
from pipeline.encoders.packing import FrameSpan, plan_calls
from pipeline.encoders.tokens import VisualTokens
from pipeline.model_folder import locate_checkpoint, read_json
from pipeline.preprocess import normalize, patchify, resize_frames, target_size
from pipeline.processor import ProcessorSettings, resolve_settings
from schemas.config import EncoderConfig, PreprocessConfig, SamplingConfig
from schemas.errors import ModelError
from schemas.grid import PatchGeometry
from schemas.manifest import EncoderIdentity, ResolvedPreprocess
from schemas.video import VideoProbe

Tower = Any
"""A ``Qwen3VLVisionModel`` or ``Qwen3VLMoeVisionModel``; transformers leaves them untyped."""

VISION_TOWERS: dict[str, Tower] = {
    "qwen3_vl": Qwen3VLVisionModel,
    "qwen3_vl_moe": Qwen3VLMoeVisionModel,
}

MIN_TOKENS_PER_CALL = 16
"""Smaller calls are filled up with copies of themselves: matrix products of fewer than 12 rows
round differently on the CPU, and a token must not depend on what shared its call."""

_IDENTITY_FIELDS = (
    "depth",
    "hidden_size",
    "hidden_act",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
    "out_hidden_size",
    "num_position_embeddings",
    "deepstack_visual_indexes",
)
"""Fields of the vision configuration that change the tokens, hashed with the weights."""


class Qwen3VLEncoder:
    """Turns resized frames into visual tokens; one instance per device."""

    def __init__(
        self,
        tower: Tower,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_type: str,
        settings: ProcessorSettings,
        max_patches_per_call: int,
        revision: str = "",
    ) -> None:
        self._tower = tower.eval()
        self._max_patches = max_patches_per_call
        self.tokenizer = tokenizer
        self.settings = settings
        self.revision = revision
        self.patches = patch_geometry(tower)
        self.identity = EncoderIdentity(
            model_type=model_type,
            weights_digest=digest_tower(tower),
            tokenizer_digest=digest_tokenizer(tokenizer),
            dtype=STORAGE_DTYPES[tower.dtype],
            hidden_size=int(tower.config.out_hidden_size),
            num_deepstack=len(tower.config.deepstack_visual_indexes),
            patches=self.patches,
        )

    @property
    def preprocess(self) -> ResolvedPreprocess:
        return self.settings.preprocess

    @property
    def device(self) -> torch.device:
        return torch.device(self._tower.device)

    def resize(
        self, frames_THWC: npt.NDArray[np.uint8], probe: VideoProbe, num_frames: int
    ) -> npt.NDArray[np.uint8]:
        """Frames of a video of ``num_frames`` sampled ones in the size this encoder takes."""
        size = target_size(
            num_frames, probe.height, probe.width, patches=self.patches, settings=self.preprocess
        )
        return resize_frames(frames_THWC, size)

    @torch.inference_mode()
    def encode(self, videos: Sequence[Tensor]) -> list[VisualTokens]:
        """Encode resized videos, several in one call where they fit, long ones in chunks.

        Args:
            videos: per video ``(T, H, W, 3)`` uint8 of the size ``target_size`` gave.

        Returns:
            One VisualTokens per video, on the encoder's device, in its dtype.
        """
        grids = [self.patches.token_grid(len(video), *video.shape[1:3]) for video in videos]
        sizes = [(g.frames, g.tokens_per_frame * self.patches.patches_per_token) for g in grids]
        parts: list[list[Tensor]] = [[] for _ in videos]
        for call in plan_calls(sizes, max_patches=self._max_patches):
            for span, features in zip(call, self._call(videos, call), strict=True):
                parts[span.video].append(features)
        results = []
        for grid, pieces in zip(grids, parts, strict=True):
            features_LND = torch.cat(pieces, dim=1)
            results.append(VisualTokens(features_LND[0], features_LND[1:], grid))
        return results

    def _call(self, videos: Sequence[Tensor], call: Sequence[FrameSpan]) -> list[Tensor]:
        """Run the tower once: per span ``(1 + S, tokens, D)``, embeddings first, then DeepStack."""
        temporal = self.patches.temporal_patch_size
        pixels, grid_thw = [], []
        for span in call:
            frames = videos[span.video][span.first * temporal : span.last * temporal]
            rows = patchify(frames.to(self.device, non_blocking=True), self.patches)
            pixels.append(normalize(rows, self.preprocess))
            sides = (side // self.patches.patch_size for side in frames.shape[1:3])
            grid_thw.append([span.last - span.first, *sides])
        merged = [t * h * w // self.patches.patches_per_token for t, h, w in grid_thw]
        copies = -(-MIN_TOKENS_PER_CALL // sum(merged))
        output = self._tower(
            torch.cat(pixels * copies).to(self._tower.dtype),
            grid_thw=torch.tensor(grid_thw * copies, device=self.device),
        )
        features_LND = torch.stack([output.pooler_output, *output.deepstack_features])
        return list(torch.split(features_LND[:, : sum(merged)], merged, dim=1))


def load_encoder(
    config: EncoderConfig,
    preprocess: PreprocessConfig | None = None,
    sampling: SamplingConfig | None = None,
) -> Qwen3VLEncoder:
    """Load the vision tower of a checkpoint and what belongs to it.

    Args:
        config: which checkpoint, and where it runs.
        preprocess: what overrides the checkpoint's own settings.
        sampling: likewise; for ``Qwen3VLEncoder.settings`` alone, an encoder samples nothing.

    Raises:
        ModelError: no such checkpoint, another architecture, missing weights, settings of its
            processor that cannot be honoured, or no such device.
    """
    directory = locate_checkpoint(config.model, config.revision)
    model_type = str(read_json(directory / "config.json").get("model_type"))
    if model_type not in VISION_TOWERS:
        raise ModelError(
            f"{directory}: model_type {model_type!r} is not supported; expected one of "
            f"{', '.join(VISION_TOWERS)}"
        )
    dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    tower = load_tower(directory, model_type, resolve_device(config.device), dtype)
    tokenizer = load_tokenizer(str(directory))
    check_markers(directory, tokenizer)
    return Qwen3VLEncoder(
        tower,
        tokenizer,
        model_type=model_type,
        settings=resolve_settings(
            directory, sampling=sampling, preprocess=preprocess, patches=patch_geometry(tower)
        ),
        max_patches_per_call=config.max_patches_per_call,
        revision=directory.name if directory.parent.name == "snapshots" else "",
    )


def load_tower(
    directory: Path, model_type: str, device: torch.device, dtype: torch.dtype | str
) -> Tower:
    """Load the vision tower of a checkpoint alone.

    Args:
        directory: of the checkpoint.
        model_type: a key of ``VISION_TOWERS``.
        device: where it goes.
        dtype: of its weights; "auto" is the checkpoint's own.

    Raises:
        ModelError: weights that are missing, damaged or of a type that cannot be cached.
    """
    try:
        with quiet_loading():
            tower, report = VISION_TOWERS[model_type].from_pretrained(
                directory,
                key_mapping={r"^(model\.)?visual\.": ""},
                dtype=dtype,
                output_loading_info=True,
            )
    except Exception as error:  # any failure of a foreign loader means the same to the caller
        raise ModelError(
            f"{directory}: the vision encoder cannot be loaded: {first_line(error)}; expected a "
            "checkpoint with all its files whole; fetch it again"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelError(
            f"{directory}: {len(lacking)} weights of the vision encoder are missing or misshapen, "
            f"first {lacking[0]}; the checkpoint is incomplete"
        )
    if tower.dtype not in STORAGE_DTYPES:
        raise ModelError(
            f"{directory}: weights of type {tower.dtype} cannot be cached; set encoder.dtype to "
            "float32, bfloat16 or float16"
        )
    return tower.to(device)


def resolve_device(name: str) -> torch.device:
    """The torch device for a setting; "auto" is CUDA when there is one, else the CPU.

    Raises:
        ModelError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ModelError(f"device {name!r} cannot be used on this machine: {reason}") from error
    return device


def patch_geometry(tower: Tower) -> PatchGeometry:
    """How this tower cuts frames."""
    config = tower.config
    return PatchGeometry(config.patch_size, config.temporal_patch_size, config.spatial_merge_size)


def digest_tower(tower: Tower) -> str:
    """sha256 over configuration, names, types, shapes and bytes of the vision weights."""
    digest = hashlib.sha256()
    settings = {name: getattr(tower.config, name, None) for name in _IDENTITY_FIELDS}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
