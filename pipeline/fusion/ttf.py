"""Temporal token fusion: tokens that look like one of the anchor frame are fused into it.

Dimension key: T token frames, N = H*W cells of a frame, D channels, P places of the window;
C cells and F frames of one block. The rules (arXiv 2605.07355) and their ties:

1. The anchor is the frame whose mean token has the greatest cosine with the mean of the video;
   the earliest such frame.
2. A token's match is the token with the greatest cosine in the window around its cell in the
   anchor, clipped at the borders; the earliest such place, row by row.
3. A token is fused when that cosine is strictly greater than the threshold. The match stands for
   it, unchanged. The anchor's own tokens are all kept.

The cosine does not depend on the threshold: every lower threshold keeps a prefix of the storage
order (anchor tokens, then ascending cosine), and a budget is such a prefix too.
"""

import torch
from torch import Tensor

from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.precision import full_precision
from schemas.config import FusionConfig, budget_tokens
from schemas.errors import FusionError
from schemas.grid import TokenGrid

EPSILON = 1e-12
"""Smallest norm a vector is divided by: the cosine with a zero vector is 0."""

_FRAMES_PER_BLOCK = 32
_WINDOW_VALUES_ON_CPU = 2**19
_WINDOW_VALUES_ELSEWHERE = 2**24
"""Anchor values gathered at a time: on a CPU they stay in its cache, a GPU is kept busy."""

_MULTIPLE = 16
"""Window places and channels of a matrix product are filled up to a multiple of this.

Measured with MKL: equal tokens then get equal bits wherever they stand, the rounding error halves,
and it is faster than the odd 9 places (docs/decisions/fusion.md).
"""


@torch.no_grad()
def plan_ttf(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan temporal token fusion.

    The threshold is rounded to float32, as scores are. With a budget it is not used: the anchor's
    tokens and then the smallest scores are kept, earlier tokens first among equals, and the
    effective threshold lies between the last kept score and the next one.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold``, ``window`` and ``budget`` are used.

    Raises:
        FusionError: tokens that are not finite, or a budget below the tokens of one frame.
    """
    num_kept = None if config.budget is None else budget_tokens(config.budget, grid.num_tokens)
    if num_kept is not None and num_kept < grid.tokens_per_frame:
        raise FusionError(
            f"fusion method 'ttf' keeps the {grid.tokens_per_frame} tokens of its anchor frame, "
            f"and budget={config.budget!r} grants this video of {grid} tokens only {num_kept}. "
            f"Ask for at least {grid.tokens_per_frame} tokens, or choose 'random' or 'uniform'."
        )
    with full_precision(tokens.device.type):
        channels = _fill_channels(tokens)
        anchor = select_anchor(channels, grid)
        best, match = best_match(channels, grid, anchor=anchor, window=config.window)
    if num_kept is None:
        is_kept = best <= config.threshold
    else:
        is_kept = torch.zeros_like(best, dtype=torch.bool)
        is_kept[best.argsort(stable=True)[:num_kept]] = True
    keep_index = is_kept.nonzero().squeeze(1)
    score = best[keep_index]
    every = torch.arange(grid.num_tokens, device=tokens.device)
    return FusionPlan(
        method="ttf",
        grid=grid,
        keep_index=keep_index,
        match_index=torch.where(is_kept, every, match),
        score=score,
        storage_order=score.argsort(stable=True),
        nested=True,
        anchor_frame=anchor,
    )


@torch.no_grad()
def select_anchor(tokens: Tensor, grid: TokenGrid) -> int:
    """The frame that best stands for the whole video.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.

    Returns:
        Index of the anchor frame, in ``[0, T)``.

    Raises:
        FusionError: tokens that are not finite.
    """
    means_TD = frame_means(tokens, grid)
    video_D = means_TD.mean(dim=0)
    cosine_T = (means_TD * video_D).sum(dim=1) / _norm(means_TD) / _norm(video_D)
    return int(cosine_T.argmax())


@torch.no_grad()
def frame_means(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Mean token of every frame, ``(T, D)`` float32; one read of the tokens.

    Raises:
        FusionError: tokens that are not finite, or so large that float32 cannot sum them.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    ones_1N = torch.ones(1, grid.tokens_per_frame, device=tokens.device)
    frame_ND = torch.empty(frames_TND.shape[1:], device=tokens.device)
    sums_TD = torch.empty(grid.frames, tokens.shape[1], device=tokens.device)
    for t, frame in enumerate(frames_TND):
        torch.mm(ones_1N, _as_float32(frame, frame_ND), out=sums_TD[t : t + 1])
    broken_T = ~sums_TD.isfinite().all(dim=1)
    if broken_T.any():
        raise FusionError(
            f"token frame {int(broken_T.nonzero()[0])} of grid {grid} holds values that are not "
            "finite or too large for float32. Encode this video again, with another dtype if the "
            "encoder overflows."
        )
    return sums_TD / grid.tokens_per_frame


@torch.no_grad()
def best_match(
    tokens: Tensor, grid: TokenGrid, *, anchor: int, window: int
) -> tuple[Tensor, Tensor]:
    """The greatest cosine of every token with the anchor's tokens around its cell.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        anchor: token frame to search in.
        window: odd side of the square that is searched, clipped at the borders.

    Returns:
        ``(T*N,)`` float32 cosines and ``(T*N,)`` int64 grid indices of the matches. The anchor's
        own tokens have -inf and themselves.

    Raises:
        FusionError: tokens so large that their norm overflows float32.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    anchor_ND = frames_TND[anchor].float()
    anchor_norm_N = _norm(anchor_ND)
    window_NP = window_cells(grid, window).to(tokens.device)
    best_TN, norm_TN = torch.empty(2, *frames_TND.shape[:2], device=tokens.device)
    match_TN = torch.empty(frames_TND.shape[:2], dtype=torch.int64, device=tokens.device)
    cell_blocks, frame_blocks = _blocks(tokens, grid, window_NP.shape[1])
    # The large temporaries are made once: fresh pages cost more than the arithmetic on them.
    places_CPD = anchor_ND.new_empty(cell_blocks[0].stop, *window_NP.shape[1:], tokens.shape[1])
    block_FCD = anchor_ND.new_empty(frame_blocks[0].stop, cell_blocks[0].stop, tokens.shape[1])
    for cells in cell_blocks:
        places_CP = window_NP[cells]
        torch.index_select(anchor_ND, 0, places_CP.flatten(), out=places_CPD.flatten(0, 1))
        for frames in frame_blocks:
            values_FCD = _as_float32(frames_TND[frames, cells], block_FCD)
            dots_CFP = values_FCD.transpose(0, 1) @ places_CPD.transpose(1, 2)
            cosine_CF, place_CF = (dots_CFP / anchor_norm_N[places_CP].unsqueeze(1)).max(dim=2)
            best_TN[frames, cells] = cosine_CF.T
            match_TN[frames, cells] = places_CP.gather(1, place_CF).T
            norm_TN[frames, cells] = _norm(values_FCD, squares=block_FCD)
    if not norm_TN.isfinite().all():
        raise FusionError(
            f"tokens of grid {grid} are too large: the norm of one overflows float32. Scale the "
            "features, or encode this video again."
        )
    best_TN /= norm_TN
    best_TN[anchor] = -torch.inf
    first = anchor * grid.tokens_per_frame
    match_TN += first
    match_TN[anchor] = torch.arange(grid.tokens_per_frame, device=tokens.device) + first
    return best_TN.flatten(), match_TN.flatten()


def window_cells(grid: TokenGrid, window: int) -> Tensor:
    """Cells of a frame in the window around each cell, ``(N, P)`` int64, row by row.

    Places beyond a border repeat the border's cell, and the last places repeat the last one: to a
    maximum, of which the earliest place counts, a repetition means nothing.
    """
    offsets = torch.arange(window) - window // 2
    rows = (torch.arange(grid.height)[:, None] + offsets).clamp(0, grid.height - 1)
    columns = (torch.arange(grid.width)[:, None] + offsets).clamp(0, grid.width - 1)
    cells_NP = (rows[:, None, :, None] * grid.width + columns[None, :, None, :]).reshape(
        grid.tokens_per_frame, window**2
    )
    missing = -(window**2) % _MULTIPLE
    return torch.cat([cells_NP, cells_NP[:, -1:].expand(-1, missing)], dim=1)


def equal_blocks(length: int, limit: int) -> list[slice]:
    """Cover ``range(length)`` with the fewest slices of one size of at most ``limit``.

    The last slice overlaps the one before it: products of one shape round alike.
    """
    count = -(-length // limit)
    size = -(-length // count)
    starts = [min(number * size, length - size) for number in range(count)]
    return [slice(start, start + size) for start in starts]


def _blocks(tokens: Tensor, grid: TokenGrid, num_places: int) -> tuple[list[slice], list[slice]]:
    """Blocks of cells and blocks of frames that are matched at a time."""
    on_cpu = tokens.device.type == "cpu"
    num_values = _WINDOW_VALUES_ON_CPU if on_cpu else _WINDOW_VALUES_ELSEWHERE
    cells_per_block = max(2, num_values // (num_places * tokens.shape[1]))
    return (
        equal_blocks(grid.tokens_per_frame, cells_per_block),
        equal_blocks(grid.frames, _FRAMES_PER_BLOCK),
    )


def _fill_channels(tokens: Tensor) -> Tensor:
    """Zeros behind the channels until they are a multiple; models in use need none."""
    missing = -tokens.shape[1] % _MULTIPLE
    return torch.nn.functional.pad(tokens, (0, missing)) if missing else tokens


def _as_float32(values: Tensor, buffer: Tensor) -> Tensor:
    """The values themselves where they are float32, otherwise a copy in ``buffer``."""
    return values if values.dtype == torch.float32 else buffer.copy_(values)


def _norm(vectors: Tensor, *, squares: Tensor | None = None) -> Tensor:
    """Euclidean norm over the last side, at least ``EPSILON``; summed pairwise.

    ``squares`` is room for the squares, and may be ``vectors`` itself.
    """
    return torch.mul(vectors, vectors, out=squares).sum(dim=-1).sqrt().clamp_min(EPSILON)
