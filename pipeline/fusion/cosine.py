"""Cosines in float32, whatever the tokens are stored in.

Dimension key: T token frames, N cells of a frame, D channels.
"""

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
def cosines_with_earlier(tokens: Tensor, grid: TokenGrid, *, lag: int = 1) -> Tensor:
    """Cosine of every token with the one of the same cell ``lag`` token frames before.

    Equal tokens give equal bits wherever they stand. Two frames of temporaries are needed.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        lag: at least 1.

    Returns:
        ``(max(T - lag, 0), N)`` float32; row i speaks of token frame ``i + lag``.

    Raises:
        FusionError: tokens that are not finite, or so large that a norm overflows float32.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    now_ND, then_ND, product_ND = torch.empty(3, *frames_TND.shape[1:], device=tokens.device)
    norm_TN = torch.empty(frames_TND.shape[:2], device=tokens.device)
    for t, frame in enumerate(frames_TND):
        norm_TN[t] = norm(as_float32(frame, now_ND), squares=product_ND)
    require_finite_norms(norm_TN, grid)
    cosine_TN = torch.empty(max(grid.frames - lag, 0), len(now_ND), device=tokens.device)
    for t, row_N in enumerate(cosine_TN):
        earlier, later = frames_TND[t], frames_TND[t + lag]
        torch.mul(as_float32(later, now_ND), as_float32(earlier, then_ND), out=product_ND)
        row_N.copy_(product_ND.sum(dim=-1) / norm_TN[t + lag] / norm_TN[t])
    return cosine_TN
