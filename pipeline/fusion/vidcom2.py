"""VidCom2: keep the tokens that are least alike their frame and their video.

Dimension key: T token frames, N = H*W cells of a frame, D channels, C channels compared, G = T*N
tokens, K kept tokens. The rules (arXiv 2505.14454) and their ties:

1. The D // 2 channels with the lowest variance over all tokens are compared (at least one), the
   lower channel of equals. f is a token's unit vector in them.
2. The alikeness of a token and a centre c is the sum of exp(-|f - c|^2 / (2 a)) over
   a = 1/8, 1/4, 1/2, 1, 2. A token's score is its alikeness to the mean f of the video plus that
   to the mean f of its frame. Means are not made unit vectors again.
3. A frame's uniqueness is minus the mean alikeness of its tokens to the video; p is the softmax of
   uniqueness / 0.01 over frames. With R the share asked for, a frame keeps
   round(N min(1, R (1 + p - mean p))) tokens, those with the smallest scores: a half is rounded to
   the even number, and no frame is left with none.
4. The sum of these is brought to exactly K: kept tokens with the largest scores are dropped,
   though never the last of a frame, or dropped tokens with the smallest scores are added.

The earlier of equal tokens is kept. All is computed in float64, one frame at a time: the softmax
magnifies an error of the scores a hundred times, and each frame's share hangs on every other's.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.fusion.anchor import frame_means
from pipeline.fusion.cosine import norm
from pipeline.fusion.nearest import nearest_kept
from pipeline.fusion.plan import FusionPlan
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
_TEMPERATURE = 0.01


@torch.no_grad()
def plan_vidcom2(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan VidCom2.

    ``FusionPlan.score`` is the alikeness to frame and video, in (0, 10]. Every frame's share hangs
    on the budget, so a smaller budget is not a prefix.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``budget`` is used; without one the method's share is kept, but a token of every
            frame at least.

    Raises:
        FusionError: tokens that are not finite, or a budget below the number of frames.
    """
    frame_means(tokens, grid)
    num_kept = _num_kept(grid, config)
    to_video_TN, to_frame_TN = alikeness(tokens, grid, _steady_channels(tokens, grid))
    score_TN = to_video_TN + to_frame_TN
    count_T = frame_counts(-to_video_TN.mean(dim=1), _share(grid, config), grid.tokens_per_frame)
    keep_index = _lowest(score_TN, count_T, num_kept)
    return FusionPlan(
        method=config.method,
        grid=grid,
        keep_index=keep_index,
        match_index=nearest_kept(keep_index.cpu(), grid).to(tokens.device),
        score=score_TN.flatten()[keep_index].float(),
        storage_order=torch.arange(num_kept, device=tokens.device),
        nested=False,
    )


def _num_kept(grid: TokenGrid, config: FusionConfig) -> int:
    num_kept = config.num_kept(grid.num_tokens)
    if config.budget is not None and num_kept < grid.frames:
        raise FusionError(
            f"fusion method {config.method!r} keeps at least one token of each frame, and "
            f"budget={config.budget!r} grants this video of {grid} tokens only {num_kept}. Ask for "
            f"at least {grid.frames} tokens, or choose 'random' or 'uniform'."
        )
    return max(grid.frames, num_kept)


def _share(grid: TokenGrid, config: FusionConfig) -> float:
    """R: the fraction asked for as it stands, or the number of tokens asked for over all."""
    budget = config.abilities.budget if config.budget is None else config.budget
    if isinstance(budget, float):
        return budget
    return config.num_kept(grid.num_tokens) / grid.num_tokens


def _steady_channels(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The half of the channels that varies least over all tokens, ``(C,)`` int64 ascending."""
    order_D = channel_variances(tokens, grid).argsort(stable=True)
    return order_D[: max(1, tokens.shape[1] // 2)].sort().values


def channel_variances(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Variance of each channel over all tokens, times G squared.

    Sums are of differences to the first token: a large mean cancels nothing, a constant channel
    has exactly 0, and whole numbers give exact results, so that equals are equal.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.

    Returns:
        ``(D,)`` float64.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    first_D = tokens[0].double()
    room_ND = torch.empty(frames_TND.shape[1:], dtype=torch.float64, device=tokens.device)
    squares_ND = torch.empty_like(room_ND)
    sum_D, sum_squares_D = torch.zeros_like(first_D), torch.zeros_like(first_D)
    for frame in frames_TND:
        room_ND.copy_(frame).sub_(first_D)
        torch.mul(room_ND, room_ND, out=squares_ND)
        sum_D += _sum_rows(room_ND)
        sum_squares_D += _sum_rows(squares_ND)
    return grid.num_tokens * sum_squares_D - sum_D * sum_D


def _sum_rows(values: Tensor) -> Tensor:
    """Sum over the first side, by adding halves; ``values`` is overwritten.

    Equal channels get equal bits wherever they stand, which ``Tensor.sum`` does not promise.
    """
    length = len(values)
    while length > 1:
        half = length // 2
        values[:half] += values[length - half : length]
        length -= half
    return values[0].clone()


def alikeness(tokens: Tensor, grid: TokenGrid, channels: Tensor) -> tuple[Tensor, Tensor]:
    """How alike each token is to its video and to its frame.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        channels: ``(C,)`` int64, the channels compared.

    Returns:
        Two of ``(T, N)`` float64, each in (0, 5]: to the video, to the frame.
    """
    frame_mean_TC = torch.stack(
        [_sum_rows(unit_NC) for unit_NC in _unit_frames(tokens, grid, channels)]
    ).div_(grid.tokens_per_frame)
    video_mean_C = _sum_rows(frame_mean_TC.clone()) / grid.frames
    distance_2TN = frame_mean_TC.new_empty(2, grid.frames, grid.tokens_per_frame)
    room_NC = frame_mean_TC.new_empty(grid.tokens_per_frame, len(channels))
    for t, unit_NC in enumerate(_unit_frames(tokens, grid, channels)):
        for place, centre_C in enumerate((video_mean_C, frame_mean_TC[t])):
            torch.sub(unit_NC, centre_C, out=room_NC)
            distance_2TN[place, t] = room_NC.square_().sum(dim=-1)
    alikeness_2TN = torch.stack([torch.exp(distance_2TN / (-2 * a)) for a in _WIDTHS]).sum(dim=0)
    return alikeness_2TN[0], alikeness_2TN[1]


def _unit_frames(tokens: Tensor, grid: TokenGrid, channels: Tensor) -> Iterator[Tensor]:
    """Each frame's unit vectors in ``channels``, ``(N, C)`` float64; one room is used again."""
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    shape = (grid.tokens_per_frame, len(channels))
    picked_NC = torch.empty(shape, dtype=tokens.dtype, device=tokens.device)
    unit_NC, squares_NC = torch.empty(2, *shape, dtype=torch.float64, device=tokens.device)
    for frame in frames_TND:
        unit_NC.copy_(torch.index_select(frame, 1, channels, out=picked_NC))
        unit_NC /= norm(unit_NC, squares=squares_NC)[:, None]
        yield unit_NC


def frame_counts(uniqueness_T: Tensor, share: float, tokens_per_frame: int) -> Tensor:
    """Tokens that each frame keeps before their sum is made exact (rule 3).

    Args:
        uniqueness_T: ``(T,)`` float64.
        share: R, the share of all tokens that is to be kept, in (0, 1].
        tokens_per_frame: N.

    Returns:
        ``(T,)`` int64, each in ``[1, N]``.
    """
    weight_T = torch.softmax(uniqueness_T / _TEMPERATURE, dim=0)
    share_T = (share * (1 + weight_T - weight_T.mean())).clamp_max(1)
    return (share_T * tokens_per_frame).round().long().clamp_min(1)


def _lowest(score_TN: Tensor, count_T: Tensor, num_kept: int) -> Tensor:
    """The tokens of rule 4: by what may be dropped last, then by score, then in grid order.

    The lowest of every frame comes first, then the others that its count grants it, then the rest.

    Returns:
        ``(K,)`` int64 grid indices, ascending.
    """
    place_TN = score_TN.argsort(dim=1, stable=True).argsort(dim=1)
    tier_G = ((place_TN > 0).long() + (place_TN >= count_T[:, None])).flatten()
    order_G = score_TN.flatten().argsort(stable=True)
    order_G = order_G[tier_G[order_G].argsort(stable=True)]
    return order_G[:num_kept].sort().values
