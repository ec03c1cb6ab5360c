"""Frames to pixel values, bit-equal to transformers' ``Qwen3VLVideoProcessor`` on the CPU.

The processor itself needs torchvision, whose wheels need CUDA; this is the same arithmetic on plain
torch (docs/decisions/preprocessing.md). Dimension key: T frames, H W pixels, C channels, P patches.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from schemas.errors import PreprocessError
from schemas.grid import PatchGeometry
from schemas.manifest import ResolvedPreprocess

MAX_ASPECT_RATIO = 200


def target_size(
    num_frames: int,
    height: int,
    width: int,
    *,
    patches: PatchGeometry,
    settings: ResolvedPreprocess,
) -> tuple[int, int]:
    """Height and width every sampled frame is resized to.

    The pixel budget is one for the whole video, so the size depends on ``num_frames``. Formula:
    ``smart_resize`` and ``Qwen3VLVideoProcessor.resize`` in video_processing_qwen3_vl.py.

    Raises:
        PreprocessError: fewer frames than one temporal patch, or an aspect ratio above 200.
    """
    factor, temporal = patches.token_side, patches.temporal_patch_size
    if num_frames < temporal:
        raise PreprocessError(
            f"the video has {num_frames} frame, but the model's processor needs at least "
            f"{temporal}; leave it out of the corpus or treat it as an image"
        )
    budget = _pixel_budget(num_frames, factor, settings)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise PreprocessError(
            f"frames of {width}x{height} pixels have an aspect ratio above {MAX_ASPECT_RATIO}, "
            "which the model's processor refuses; crop the video"
        )
    rounded_height = round(height / factor) * factor
    rounded_width = round(width / factor) * factor
    volume = round(num_frames / temporal) * temporal * rounded_height * rounded_width
    if volume > budget:
        shrink = math.sqrt(num_frames * height * width / budget)
        rounded_height = max(factor, math.floor(height / shrink / factor) * factor)
        rounded_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (num_frames * height * width))
        rounded_height = math.ceil(height * grow / factor) * factor
        rounded_width = math.ceil(width * grow / factor) * factor
    return rounded_height, rounded_width


def _pixel_budget(num_frames: int, factor: int, settings: ResolvedPreprocess) -> int:
    if not settings.cap_pixels_per_frame:
        return settings.max_pixels
    frame_cap = settings.max_video_tokens * factor * factor
    even_share = settings.max_pixels // num_frames
    return max(min(frame_cap, even_share), int(settings.min_pixels * 1.05)) * num_frames


def resize_frames(
    frames_THWC: npt.NDArray[np.uint8], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Resize by antialiased bicubic interpolation on uint8, as the processor does on the CPU.

    Frames are resized independently: batches of one video may be resized one by one.

    Args:
        frames_THWC: ``(T, H, W, 3)`` uint8.
        size: height and width from ``target_size``.

    Returns:
        ``(T, *size, 3)`` uint8; always a copy.
    """
    if frames_THWC.shape[1:3] == size:
        return frames_THWC.copy()
    frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC.transpose(0, 3, 1, 2)))
    resized_TCHW = interpolate(
        frames_TCHW, size=size, mode="bicubic", align_corners=False, antialias=True
    )
    resized: npt.NDArray[np.uint8] = resized_TCHW.permute(0, 2, 3, 1).contiguous().numpy()
    return resized


def patchify(frames_THWC: Tensor, patches: PatchGeometry) -> Tensor:
    """Cut resized frames into the encoder's patch rows; an odd last frame is repeated.

    Rows are ordered by temporal patch, then by merged token (row-major), then within the token;
    ``Qwen3VLVideoProcessor.patchify``. Whole temporal patches may be cut one by one.

    Args:
        frames_THWC: ``(T, H, W, 3)``; H and W multiples of ``patches.token_side``.
        patches: the encoder's geometry.

    Returns:
        ``(P, 3, temporal_patch_size * patch_size**2)`` of the same dtype.
    """
    side, temporal, merge = (
        patches.patch_size,
        patches.temporal_patch_size,
        patches.spatial_merge_size,
    )
    if missing := -len(frames_THWC) % temporal:
        last = frames_THWC[-1:].expand(missing, -1, -1, -1)
        frames_THWC = torch.cat([frames_THWC, last])
    num_frames, height, width, channels = frames_THWC.shape
    rows, columns = height // side, width // side
    cut = frames_THWC.reshape(
        num_frames // temporal,
        temporal,
        rows // merge,
        merge,
        side,
        columns // merge,
        merge,
        side,
        channels,
    )  # t, frame, y, merged y, pixel y, x, merged x, pixel x, channel
    ordered = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return ordered.reshape(-1, channels, temporal * side * side)


def normalize(patches_PCX: Tensor, settings: ResolvedPreprocess) -> Tensor:
    """Rescale and normalise patch rows in float32, on the device they are on.

    Args:
        patches_PCX: ``(P, 3, X)`` uint8 from ``patchify``.
        settings: factor, and mean and standard deviation per channel.

    Returns:
        ``(P, 3 * X)`` float32: the encoder's pixel values.
    """
    scale = 1.0 / settings.rescale_factor
    mean = torch.tensor(settings.image_mean, device=patches_PCX.device) * scale
    std = torch.tensor(settings.image_std, device=patches_PCX.device) * scale
    values = patches_PCX.to(torch.float32).sub_(mean.view(1, 3, 1)).div_(std.view(1, 3, 1))
    return values.flatten(1)
