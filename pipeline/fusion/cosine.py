"""Cosines in float32, whatever the tokens are stored in.

Dimension key: T token frames, N cells of a frame, D channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.fusion.precision import as_float32
from schemas.errors import FusionError
from schemas.grid import TokenGrid

EPSILON = 1e-12
"""Smallest norm a vector is divided by: the cosine with a zero vector is 0."""


def norm(vectors: Tensor, *, squares: Tensor | None = None) -> Tensor:
    """Euclidean norm over the last side, at least ``EPSILON``; summed pairwise.

    ``squares`` is room for the squares, and may be ``vectors`` itself.
    """
    return torch.mul(vectors, vectors, out=squares).sum(dim=-1).sqrt().clamp_min(EPSILON)


def require_finite_norms(norms: Tensor, grid: TokenGrid) -> None:
    """Raise FusionError where a norm is NaN or infinite."""
    if not norms.isfinite().all():
        raise FusionError(
            f"tokens of grid {grid} are not finite, or too large: the norm of one overflows "
            "float32. Scale the features, or encode this video again."
        )


@torch.no_grad()
def cosines_with_earlier(tokens: Tensor, grid: TokenGrid, lags: Sequence[int]) -> Tensor:
    """Cosine of every token with the one of the same cell some token frames before.

    Equal tokens give equal bits wherever they stand. Three frames of temporaries are needed.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        lags: for each frame how far before it that is; 0: the frame is compared with none.

    Returns:
        ``(T, N)`` float32, -inf in frames that are compared with none.

    Raises:
        FusionError: tokens that are not finite, or so large that a norm overflows float32.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    now_ND, then_ND, product_ND = torch.empty(
        3, *frames_TND.shape[1:], dtype=torch.float32, device=tokens.device
    )
    norm_TN = norm_of_frames(tokens, grid)
    cosine_TN = torch.full_like(norm_TN, -torch.inf)
    for t, lag in enumerate(lags):
        if lag:
            earlier, later = frames_TND[t - lag], frames_TND[t]
            torch.mul(as_float32(later, now_ND), as_float32(earlier, then_ND), out=product_ND)
            cosine_TN[t] = product_ND.sum(dim=-1) / norm_TN[t] / norm_TN[t - lag]
    return cosine_TN


@torch.no_grad()
def norm_of_frames(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The norm of every token, ``(T, N)`` float32, a frame at a time.

    Raises:
        FusionError: tokens that are not finite, or so large that a norm overflows float32.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    frame_ND, squares_ND = torch.empty(
        2, *frames_TND.shape[1:], dtype=torch.float32, device=tokens.device
    )
    norms = [norm(as_float32(frame, frame_ND), squares=squares_ND) for frame in frames_TND]
    norm_TN = torch.stack(norms)
    require_finite_norms(norm_TN, grid)
    return norm_TN
