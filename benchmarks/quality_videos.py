"""Videos of tokens for bench_quality.py: real clips, and synthetic ones that are known exactly.

Dimension key: T token frames, H W sides of a frame, D channels.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.decode.reader import FrameReader
from pipeline.encoders import load_encoder
from pipeline.preprocess import patchify
from schemas.config import DecodeConfig, EncoderConfig, PreprocessConfig, SamplingConfig
from schemas.errors import DecodeError
from schemas.grid import PatchGeometry, TokenGrid

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
TOKENS_PER_FRAME = 128
POOL = 4
"""Pixels on each side that are averaged into one value of a pixel token."""

SIDE, CHANNELS = 14, 512
COMMON, SCENE = 0.5, 0.5
"""Size of what all tokens share, and those of one scene, against what each has alone."""

NOISE, SENSOR_NOISE = 0.15, 0.4
"""Size of what is new in each frame."""

OBJECT = (3, 4)
OBJECT_SPEED = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class TokenVideo:
    """All tokens of one video, ``(T*H*W, D)`` float32, and the group it is counted in."""

    group: str
    name: str
    tokens: Tensor
    grid: TokenGrid


def real_videos(directory: Path, model: str, *, max_token_frames: int) -> Iterator[TokenVideo]:
    """Each clip of a folder twice: as the encoder's tokens, and as pixels.

    Clips are sampled twice a second, at most ``max_token_frames`` token frames of about
    ``TOKENS_PER_FRAME`` tokens, and go the way of a build.
    """
    num_frames = 2 * max_token_frames
    pixels = PreprocessConfig(max_pixels=num_frames * TOKENS_PER_FRAME * 32 * 32)
    encoder = load_encoder(EncoderConfig(model=model), pixels)
    sampling = SamplingConfig(fps=2.0, max_frames=num_frames)
    if not directory.is_dir():
        raise SystemExit(f"--videos {directory}: there is no such folder")
    paths = [path for path in sorted(directory.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise SystemExit(f"{directory} holds no clip; expected files that end in {SUFFIXES}")
    with FrameReader(DecodeConfig(), sampling) as reader:
        for path in paths:
            try:
                frames = torch.from_numpy(reader.read(path, resize=encoder.resize).frames)
            except DecodeError as error:
                print(f"{path.name} is left out: {error}", file=sys.stderr)
                continue
            encoded = encoder.encode([frames])[0]
            tokens = encoded.embeddings.float().cpu()
            yield TokenVideo("real clips, encoder tokens", path.stem, tokens, encoded.grid)
            tokens = pixel_tokens(frames, encoder.patches)
            yield TokenVideo("real clips, pixels", path.stem, tokens, encoded.grid)


def pixel_tokens(frames_THWC: Tensor, patches: PatchGeometry) -> Tensor:
    """The pixels of each token's place, coarser by ``POOL``: no encoder had a part in them.

    The mean token of the video is taken off, or all would be alike, and one channel that is the
    same for all is put on, or places near the mean would differ by their noise alone.
    """
    coarse = avg_pool2d(frames_THWC.permute(0, 3, 1, 2).float(), POOL).permute(0, 2, 3, 1)
    small = PatchGeometry(
        patches.patch_size // POOL, patches.temporal_patch_size, patches.spatial_merge_size
    )
    rows = patchify(coarse, small).flatten(1)
    tokens = rows.reshape(len(rows) // patches.patches_per_token, -1) / 127.5
    tokens = tokens - tokens.mean(dim=0)
    usual_size = tokens.square().sum(dim=1).mean().sqrt()
    return torch.cat([tokens, (COMMON * usual_size).expand(len(tokens), 1)], dim=1)


def synthetic_videos(*, is_quick: bool) -> Iterator[TokenVideo]:
    """Scenes that are static, move, cut, or come back."""
    length = 8 if is_quick else 32
    one_scene = cuts(0, length)
    static = partial(film, one_scene, noise=SENSOR_NOISE, has_object=False)
    recipes: list[tuple[str, str, Callable[[], Tensor]]] = [
        ("one scene", "0 cuts", partial(film, one_scene)),
        ("one scene", "static, sensor noise", static),
        ("cuts", "1 cut", partial(film, cuts(1, length))),
        ("cuts", "3 cuts", partial(film, cuts(3, length))),
        ("cuts", "7 cuts", partial(film, cuts(7, length))),
        ("there and back", "A-B-A-B", partial(film, [t // 4 % 2 for t in range(length)])),
        ("pans", "pan 0.2", partial(film, one_scene, pan=0.2)),
        ("pans", "pan 0.5", partial(film, one_scene, pan=0.5)),
        ("long", "T=128, 15 cuts", partial(film, cuts(15, 4 * length))),
    ]
    for group, name, make in recipes[3:4] if is_quick else recipes:
        tokens_THWD = make()
        grid = TokenGrid(*tokens_THWD.shape[:3])
        yield TokenVideo(f"synthetic, {group}", name, tokens_THWD.flatten(0, 2), grid)


def cuts(count: int, num_frames: int) -> list[int]:
    """The scene of each frame when ``count`` cuts are evenly spaced."""
    return [t * (count + 1) // num_frames for t in range(num_frames)]


def film(
    scene_of: list[int], *, noise: float = NOISE, pan: float = 0.0, has_object: bool = True
) -> Tensor:
    """Tokens ``(T, SIDE, SIDE, CHANNELS)``: backgrounds partly smooth, seen through noise.

    Args:
        scene_of: the scene of each frame.
        noise: size of what is new in each frame.
        pan: cells by which the background moves each frame; between cells it is interpolated.
        has_object: an object moves through each scene.
    """
    generator = torch.Generator().manual_seed(0)
    width = SIDE + math.ceil(pan * len(scene_of)) + 1
    num_scenes = max(scene_of) + 1
    common = COMMON * torch.randn(CHANNELS, generator=generator)
    tones = common + SCENE * torch.randn(num_scenes, CHANNELS, generator=generator)
    fine = torch.randn(num_scenes, SIDE, width, CHANNELS, generator=generator)
    coarse = torch.randn(num_scenes, CHANNELS, SIDE // 4 + 2, width // 4 + 2, generator=generator)
    smooth = interpolate(coarse, size=(SIDE, width), mode="bilinear", align_corners=True)
    scenes = (fine + smooth.permute(0, 2, 3, 1)) / 2**0.5
    objects = torch.randn(num_scenes, *OBJECT, CHANNELS, generator=generator)
    frames = []
    for t, scene in enumerate(scene_of):
        first, between = int(pan * t), pan * t % 1
        seen = torch.lerp(
            scenes[scene, :, first : first + SIDE],
            scenes[scene, :, first + 1 : first + 1 + SIDE],
            between,
        )
        if has_object:
            top = 3 + scene % 4
            left = int(OBJECT_SPEED * t) % (SIDE - OBJECT[1] + 1)
            seen[top : top + OBJECT[0], left : left + OBJECT[1]] = objects[scene]
        frames.append(tones[scene] + seen + noise * torch.randn(seen.shape, generator=generator))
    return torch.stack(frames)
