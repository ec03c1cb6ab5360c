"""What every method is compared with: keep all, keep whole frames, keep tokens at random.

Dimension key: T token frames, N = H*W cells of a frame, K kept tokens. Tokens that are not kept
have no natural match here; ``nearest_kept`` finds one.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.fusion.anchor import frame_means
from pipeline.fusion.nearest import nearest_kept
from pipeline.fusion.plan import FusionPlan
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid


def plan_none(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Keep every token, in grid order; no setting of ``config`` matters."""
    frame_means(tokens, grid)
    every = torch.arange(grid.num_tokens, device=tokens.device)
    return FusionPlan(
        method="none",
        grid=grid,
        keep_index=every,
        match_index=every,
        score=torch.zeros(grid.num_tokens, dtype=torch.float32, device=tokens.device),
        storage_order=every,
        nested=False,
        anchor_frame=None,
    )


def plan_uniform(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Keep whole token frames, evenly spaced from the first to the last.

    K tokens need ``ceil(K / N)`` frames at ``round(linspace(0, T - 1, ceil(K / N)))``. What is
    too much is taken from the last of them, whose remaining cells are evenly spaced alike.
    """
    frame_means(tokens, grid)
    num_kept = config.num_kept(grid.num_tokens)
    num_frames = -(-num_kept // grid.tokens_per_frame)
    frames = _evenly_spaced(grid.frames, num_frames)
    cells = _evenly_spaced(
        grid.tokens_per_frame, num_kept - (num_frames - 1) * grid.tokens_per_frame
    )
    full_frames = frames[:-1, None] * grid.tokens_per_frame + np.arange(grid.tokens_per_frame)
    last_frame = frames[-1] * grid.tokens_per_frame + cells
    keep_index = torch.from_numpy(np.concatenate([full_frames.ravel(), last_frame]))
    return FusionPlan(
        method="uniform",
        grid=grid,
        keep_index=keep_index.to(tokens.device),
        match_index=nearest_kept(keep_index, grid).to(tokens.device),
        score=torch.zeros(num_kept, dtype=torch.float32, device=tokens.device),
        storage_order=torch.arange(num_kept, device=tokens.device),
        nested=False,
        anchor_frame=None,
    )


def plan_random(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Keep the first K tokens of a permutation drawn with ``config.seed``.

    The permutation depends on the seed and the number of tokens only, not on the device. A
    token's score is its place in the permutation over the number of tokens, and tokens are stored
    in that order. K is ``config.budget``, by default a third of the tokens.
    """
    frame_means(tokens, grid)
    num_kept = config.num_kept(grid.num_tokens)
    generator = torch.Generator(device="cpu").manual_seed(config.seed)
    drawn = torch.randperm(grid.num_tokens, generator=generator, device="cpu")[:num_kept]
    keep_index, place = drawn.sort()
    return FusionPlan(
        method="random",
        grid=grid,
        keep_index=keep_index.to(tokens.device),
        match_index=nearest_kept(keep_index, grid).to(tokens.device),
        score=(place.double() / grid.num_tokens).float().to(tokens.device),
        storage_order=place.argsort().to(tokens.device),
        nested=True,
        anchor_frame=None,
    )


def _evenly_spaced(length: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """``count`` of ``range(length)``, from its first to its last, distinct and ascending."""
    return np.linspace(0, length - 1, count).round().astype(np.int64)
