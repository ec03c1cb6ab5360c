"""The token frame that stands for others.

Dimension key: T token frames, N cells of a frame, D channels.
"""

import torch
from torch import Tensor

from pipeline.fusion.cosine import norm
from pipeline.fusion.forms import Form, form_for
from schemas.errors import FusionError
from schemas.grid import TokenGrid

_NEAR = 2e-6
"""Cosines closer than this are compared again in float64: every form finds the same anchor."""


def select_anchor(tokens: Tensor, grid: TokenGrid, *, form: Form | None = None) -> int:
    """The frame that best stands for the whole video.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        form: how the frames are summed; None takes the fastest there is.

    Returns:
        Index of the anchor frame, in ``[0, T)``.

    Raises:
        FusionError: tokens that are not finite.
    """
    return most_typical(tokens, grid, frame_means(tokens, grid, form=form))


@torch.no_grad()
def most_typical(tokens: Tensor, grid: TokenGrid, means_TD: Tensor) -> int:
    """The frame whose mean has the greatest cosine with the mean of all; the earliest of equals.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        means_TD: ``(T, D)`` float32, the mean of each frame.
    """
    cosine_T = _cosines_with_mean(means_TD)
    if int((cosine_T >= cosine_T.max() - _NEAR).sum()) > 1:
        frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
        exact_TD = torch.stack([frame.double().mean(dim=0) for frame in frames_TND])
        cosine_T = _cosines_with_mean(exact_TD)
    return int(cosine_T.argmax())


def _cosines_with_mean(means_TD: Tensor) -> Tensor:
    video_D = means_TD.mean(dim=0)
    return (means_TD * video_D).sum(dim=1) / norm(means_TD) / norm(video_D)


@torch.no_grad()
def frame_means(tokens: Tensor, grid: TokenGrid, *, form: Form | None = None) -> Tensor:
    """Mean token of every frame, ``(T, D)`` float32; one read of the tokens.

    Raises:
        FusionError: tokens that are not finite, or so large that float32 cannot sum them.
    """
    sums_TD = (form or form_for(tokens)).frame_sums(tokens, grid)
    broken_T = ~sums_TD.isfinite().all(dim=1)
    if broken_T.any():
        raise FusionError(
            f"token frame {int(broken_T.nonzero()[0])} of grid {grid} holds values that are not "
            "finite or too large for float32. Encode this video again, with another dtype if the "
            "encoder overflows."
        )
    return sums_TD / grid.tokens_per_frame
