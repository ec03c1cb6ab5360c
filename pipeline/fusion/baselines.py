"""What every method is compared with: keep all, keep whole frames, keep tokens at random.

Dimension key: T token frames, N = H*W cells of a frame, G = T*N tokens, K kept tokens.

Tokens that are not kept have no natural match here. The kept token of the same cell that is
nearest in time stands for them, the earlier of two; where a cell keeps no token at all, that of
the nearest cell that keeps one (Euclidean distance, the earlier cell of two, row by row).
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.ttf import frame_means
from schemas.config import FusionConfig, budget_tokens
from schemas.grid import TokenGrid

DEFAULT_BUDGET = 1 / 3
"""Fraction of the tokens that "uniform" and "random" keep when no budget is given."""


def plan_none(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Keep every token, in grid order; no setting of ``config`` matters."""
    frame_means(tokens, grid)
    every = torch.arange(grid.num_tokens, device=tokens.device)
    return FusionPlan(
        method="none",
        grid=grid,
        keep_index=every,
        match_index=every,
        score=torch.zeros(grid.num_tokens, device=tokens.device),
        storage_order=every,
        nested=False,
        anchor_frame=None,
    )


def plan_uniform(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Keep whole token frames, evenly spaced from the first to the last.

    K tokens need ``ceil(K / N)`` frames at ``round(linspace(0, T - 1, ceil(K / N)))``. What is
    too much is taken from the last of them, whose remaining cells are evenly spaced alike. K is
    ``config.budget``, by default a third of the tokens.
    """
    frame_means(tokens, grid)
    num_kept = _num_kept(grid, config)
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
        score=torch.zeros(num_kept, device=tokens.device),
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
    num_kept = _num_kept(grid, config)
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


def nearest_kept(keep_index: Tensor, grid: TokenGrid) -> Tensor:
    """The kept token that stands for each token, by the rule in the module's docstring.

    Args:
        keep_index: ``(K,)`` int64 on the CPU, ``K >= 1``.
        grid: the grid of all tokens.

    Returns:
        ``(T*N,)`` int64 grid indices.
    """
    is_kept_TN = torch.zeros(grid.num_tokens, dtype=torch.bool)
    is_kept_TN[keep_index] = True
    is_kept_TN = is_kept_TN.view(grid.frames, grid.tokens_per_frame)
    cell_N = _nearest_kept_cell(is_kept_TN.any(dim=0), grid)
    frame_TN = _nearest_kept_frame(is_kept_TN)
    return (frame_TN[:, cell_N] * grid.tokens_per_frame + cell_N).flatten()


def _nearest_kept_frame(is_kept_TN: Tensor) -> Tensor:
    """For each cell and time the nearest frame that keeps this cell; undefined without one."""
    num_frames = len(is_kept_TN)
    time_T1 = torch.arange(num_frames)[:, None]
    never = 2 * num_frames
    before_TN = torch.where(is_kept_TN, time_T1, -never).cummax(dim=0).values
    after_TN = torch.where(is_kept_TN, time_T1, never).flip(0).cummin(dim=0).values.flip(0)
    return torch.where(time_T1 - before_TN <= after_TN - time_T1, before_TN, after_TN)


def _nearest_kept_cell(is_kept_N: Tensor, grid: TokenGrid) -> Tensor:
    """For each cell the nearest cell of which any token is kept: itself wherever possible."""
    kept_A = is_kept_N.nonzero().squeeze(1)
    row_A, column_A = kept_A // grid.width, kept_A % grid.width
    columns_W1 = torch.arange(grid.width)[:, None]
    nearest = [
        kept_A[((row_A - row) ** 2 + (column_A - columns_W1) ** 2).argmin(dim=1)]
        for row in range(grid.height)
    ]
    return torch.cat(nearest)


def _num_kept(grid: TokenGrid, config: FusionConfig) -> int:
    budget = DEFAULT_BUDGET if config.budget is None else config.budget
    return budget_tokens(budget, grid.num_tokens)


def _evenly_spaced(length: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """``count`` of ``range(length)``, from its first to its last, distinct and ascending."""
    return np.linspace(0, length - 1, count).round().astype(np.int64)
