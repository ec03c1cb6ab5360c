"""Which kept token stands for a dropped one where the method itself names none.

The kept token of the same cell that is nearest in time, the earlier of two; where a cell keeps no
token at all, that of the nearest cell that keeps one (Euclidean distance, the earlier cell of two,
row by row). Dimension key: T token frames, N = H*W cells of a frame, K kept tokens, A kept cells.
"""

import torch
from torch import Tensor

from schemas.grid import TokenGrid


def nearest_kept(keep_index: Tensor, grid: TokenGrid) -> Tensor:
    """The kept token that stands for each token, by the rule above.

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
