"""Token frames of a lesson: some of them, all in order again, and the tokens that are kept."""

import numpy as np
import torch
from torch import Tensor

from examples.toyworld.checkpoint import PATCHES
from examples.toyworld.labels import FRAMES_PER_TOKEN
from examples.toyworld.scene import NUM_FRAMES, SIDE

NUM_TOKEN_FRAMES = NUM_FRAMES // FRAMES_PER_TOKEN
NUM_TOKENS = PATCHES.token_grid(NUM_FRAMES, SIDE, SIDE).num_tokens

Tokens = tuple[Tensor, list[Tensor]]
"""Embeddings ``(B, T*N, D)`` and DeepStack layers of the same shape."""


def draw_keep_index(rng: np.random.Generator, least_kept: float) -> Tensor:
    """Ascending numbers of the visual tokens that all videos of a lesson keep."""
    every = torch.arange(NUM_TOKENS)
    if least_kept == 1 or rng.random() < 0.5:
        return every
    num_kept = round(NUM_TOKENS * rng.uniform(least_kept, 1))
    return every[np.sort(rng.permutation(NUM_TOKENS)[:num_kept])]


def token_frames(frames: Tensor, numbers: Tensor) -> Tensor:
    """Frames ``(B, 2 * len(numbers), SIDE, SIDE, 3)`` of some token frames."""
    pairs = frames.view(len(frames), NUM_TOKEN_FRAMES, FRAMES_PER_TOKEN, *frames.shape[2:])
    return pairs[:, numbers].flatten(1, 2)


def in_order(seen: Tokens, rest: Tokens, numbers: Tensor) -> Tokens:
    """Embeddings and DeepStack layers of all token frames, from two lots with their numbers."""
    order = torch.argsort(numbers)

    def joined(one: Tensor, other: Tensor) -> Tensor:
        tokens = torch.cat([one, other], dim=1)
        frames = tokens.view(len(tokens), NUM_TOKEN_FRAMES, -1, tokens.shape[-1])
        return frames[:, order].flatten(1, 2)

    layers = [joined(one, other) for one, other in zip(seen[1], rest[1], strict=True)]
    return joined(seen[0], rest[0]), layers
