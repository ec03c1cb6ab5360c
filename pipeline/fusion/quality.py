"""What fusion loses, measured on the tokens as they were before it.

Every original token has two cosines: with the row that stands for it, and with the nearest of all
kept rows. Where a method averages, a row is the mean, not one of the tokens. Two zero vectors have
cosine 1 here, for nothing is lost when one stands for the other; a zero and another vector have 0.

A token's motion level follows from its cosine with the same cell of the token frame before. The
first frame is compared with the frame after it, unless that begins a new shot: it is still then.
Dimension key: G tokens, M of them measured, K kept rows, D channels, T token frames, N cells; of
one block B and R.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from math import gcd
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.fusion.cosine import EPSILON, norm
from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.precision import full_precision
from schemas.errors import FusionError, GridMismatchError
from schemas.grid import TokenGrid

STILL_FROM, LOW_FROM = 0.95, 0.80
"""Smallest cosine with the frame before of a still token, and of one in low motion."""

CUT_BELOW = 0.50
"""A frame whose mean cosine with the frame before is smaller begins a shot, and all its tokens are
"cut": what moves changes a part of a frame, a cut all of it."""

LEVELS = ("still", "low", "high", "cut")

MOST_PAIRS = 2**27
"""Tokens times kept rows that are compared; of larger videos every so many-th token is measured."""

_ROUNDING = 1e-9
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Spread:
    """How cosines lie; ``percentile_1`` is interpolated linearly, as ``numpy.percentile`` does."""

    mean: float
    percentile_1: float
    minimum: float

    def __post_init__(self) -> None:
        others = (self.mean, self.percentile_1)
        in_order = all(self.minimum - _ROUNDING <= value <= 1 + _ROUNDING for value in others)
        _require(in_order and self.minimum >= -1, f"no cosines lie like {self}")

    @classmethod
    def of(cls, cosines: Tensor) -> Self:
        """Of ``(n,)`` float64 cosines on the CPU, n >= 1."""
        values = cosines.numpy()
        return cls(float(values.mean()), float(np.percentile(values, 1)), float(values.min()))


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well the kept rows cover ``num_tokens`` original tokens, at least one.

    ``representative``: their cosines with the rows that stand for them. ``nearest``: those with
    the most alike of all kept rows, never smaller.
    """

    num_tokens: int
    representative: Spread
    nearest: Spread

    def __post_init__(self) -> None:
        _require(self.num_tokens >= 1, "a coverage speaks of at least one token")
        pairs = zip(astuple(self.representative), astuple(self.nearest), strict=True)
        in_order = all(far <= near + _ROUNDING for far, near in pairs)
        _require(in_order, f"the nearest row cannot be farther than another: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What is left of one video's tokens.

    ``num_kept`` of ``num_tokens`` tokens are kept. ``whole`` speaks of all that were measured,
    which is every ``step``-th, ``levels`` of those of each motion level, in the order of
    ``LEVELS``; a level without a token is left out.
    """

    num_kept: int
    num_tokens: int
    step: int
    whole: Coverage
    levels: Mapping[str, Coverage]

    def __post_init__(self) -> None:
        in_order = [level for level in LEVELS if level in self.levels]
        _require(list(self.levels) == in_order, f"the levels are {list(self.levels)}")
        total = sum(level.num_tokens for level in self.levels.values())
        _require(total == self.whole.num_tokens, f"levels hold {total} of {self.whole.num_tokens}")
        of_all = f"{self.num_kept} of {self.num_tokens} tokens are kept"
        _require(1 <= self.num_kept <= self.num_tokens, of_all)
        measured = -(-self.num_tokens // self.step)
        _require(total == measured, f"{total} of {self.num_tokens} are not every {self.step}-th")

    @property
    def keep_ratio(self) -> float:
        """Kept tokens / all tokens, in (0, 1]."""
        return self.num_kept / self.num_tokens


@dataclass(frozen=True, slots=True, eq=False)
class TokenCosines:
    """``(M,)`` float64 in [-1, 1] each, on the CPU; see ``Coverage``."""

    representative: Tensor
    nearest: Tensor

    def coverage(self, is_counted: Tensor) -> Coverage:
        """Of the tokens where ``(M,)`` bool is True, at least one."""
        spreads = (Spread.of(each[is_counted]) for each in (self.representative, self.nearest))
        return Coverage(int(is_counted.sum()), *spreads)


def measure_quality(tokens: Tensor, plan: FusionPlan) -> Quality:
    """What a plan leaves of the ``(G, D)`` tokens it was made from; see ``measure_rows``."""
    keep, match = plan.storage_index, plan.match_index
    return measure_rows(tokens, plan.apply(tokens), plan.grid, keep_index=keep, match_index=match)


def measure_rows(
    tokens: Tensor, rows: Tensor, grid: TokenGrid, *, keep_index: Tensor, match_index: Tensor
) -> Quality:
    """What rows leave of the tokens they were made from; stored rows may have been rounded.

    Args:
        tokens: ``(G, D)`` floating, any device; not modified.
        rows: ``(K, D)`` floating, in any order.
        grid: the grid of ``tokens``.
        keep_index: ``(K,)`` whole numbers, the grid index of each row.
        match_index: ``(G,)`` whole numbers, for every token the grid index of the kept token that
            stands for it. Where a video was loaded with a smaller budget some matches were not:
            give others for these, such as those of ``nearest_kept``.

    Raises:
        GridMismatchError: shapes that do not belong together.
        FusionError: a match without a row, or values that are not finite.
    """
    step = _step(grid, len(rows))
    cosines = token_cosines(
        tokens, rows, grid, keep_index=keep_index, match_index=match_index, step=step
    )
    level_M = motion_levels(tokens, grid)[::step]
    present = level_M.bincount().nonzero().flatten().tolist()
    return Quality(
        num_kept=len(rows),
        num_tokens=grid.num_tokens,
        step=step,
        whole=cosines.coverage(level_M >= 0),
        levels={LEVELS[i]: cosines.coverage(level_M == i) for i in present},
    )


def _step(grid: TokenGrid, num_rows: int) -> int:
    """Every which token is measured: no multiple of a side, so that all cells have their turn."""
    step = -(-grid.num_tokens * num_rows // MOST_PAIRS)
    while step > 1 and gcd(step, grid.tokens_per_frame) > 1:
        step += 1
    return step


@torch.no_grad()
def token_cosines(
    tokens: Tensor,
    rows: Tensor,
    grid: TokenGrid,
    *,
    keep_index: Tensor,
    match_index: Tensor,
    step: int = 1,
) -> TokenCosines:
    """The cosines of every ``step``-th token; arguments and errors as of ``measure_rows``.

    Products and sums are float32, and equal vectors have cosine 1 exactly. The search for the
    nearest row multiplies G*K times D values, in blocks of bounded size.
    """
    place_M = _places(tokens, rows, grid, keep_index, match_index)[::step]
    measured_MD = tokens[::step]
    rows = rows.to(tokens.device)
    parts = []
    for start in range(0, len(measured_MD), _BLOCK):
        block_BD = measured_MD[start : start + _BLOCK]
        representative_B = _cosines(block_BD, rows[place_M[start : start + _BLOCK]])
        nearest_B = _cosines(block_BD, rows[_most_alike(block_BD, rows)])
        parts.append(torch.stack([representative_B, torch.maximum(representative_B, nearest_B)]))
    return TokenCosines(*torch.cat(parts, dim=1))


@torch.no_grad()
def motion_levels(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The level of each of ``(G, D)`` tokens: ``(G,)`` int64 places in ``LEVELS``, on the CPU.

    Raises:
        FusionError: tokens that are not finite.
    """
    grid.check(len(tokens))
    frames_TND = tokens.reshape(grid.frames, grid.tokens_per_frame, -1)
    cosine_TN = torch.ones(frames_TND.shape[:2], dtype=torch.float64)
    for t in range(1, grid.frames):
        cosine_TN[t] = _cosines(frames_TND[t], frames_TND[t - 1])
    is_cut_T = cosine_TN.mean(dim=1) < CUT_BELOW
    if grid.frames > 1 and not is_cut_T[1]:
        cosine_TN[0] = cosine_TN[1]
    level_TN = (cosine_TN < STILL_FROM).long() + (cosine_TN < LOW_FROM)
    level_TN[is_cut_T] = LEVELS.index("cut")
    return level_TN.flatten()


def _places(
    tokens: Tensor, rows: Tensor, grid: TokenGrid, keep_index: Tensor, match_index: Tensor
) -> Tensor:
    """The place among ``rows`` of each token's match, ``(G,)`` int64."""
    grid.check(len(tokens))
    found = (tuple(rows.shape), tuple(match_index.shape))
    expected = ((len(keep_index), tokens.shape[1]), (grid.num_tokens,))
    if found != expected:
        raise GridMismatchError(
            f"rows and match_index have shapes {found}, expected {expected} for the "
            f"{len(keep_index)} tokens kept of grid {grid}"
        )
    keep, match = (index.to(tokens.device).long() for index in (keep_index, match_index))
    _require(((keep >= 0) & (keep < len(tokens))).all(), f"keep_index leaves the grid {grid}")
    place_G = torch.full_like(match, -1)
    place_G[keep] = torch.arange(len(keep), device=keep.device)
    _require((place_G >= 0).sum() == len(keep), "keep_index names a token twice")
    is_inside_G = (match >= 0) & (match < len(tokens))
    place_G = place_G[match.where(is_inside_G, 0)].where(is_inside_G, -1)
    num_lost = int((place_G < 0).sum())
    advice = "Load the video without a budget, or give these tokens another match."
    _require(num_lost == 0, f"the matches of {num_lost} tokens have no row. {advice}")
    return place_G


def _most_alike(block_BD: Tensor, rows: Tensor) -> Tensor:
    """For each token the row with the greatest cosine, up to rounding, ``(B,)`` int64."""
    directions_BC = _directions(block_BD)
    values, places = [], []
    with full_precision(rows.device.type):
        for first in range(0, len(rows), _BLOCK):
            directions_RC = _directions(rows[first : first + _BLOCK])
            value_B, row_B = (directions_BC @ directions_RC.T).max(dim=1)
            values.append(value_B)
            places.append(row_B + first)
    return torch.stack(places).gather(0, torch.stack(values).argmax(dim=0, keepdim=True))[0]


def _directions(vectors: Tensor) -> Tensor:
    """Unit vectors, ``(..., D + 1)`` float32; the last channel is 1 for a zero vector."""
    values = vectors.float()
    norms = _finite(norm(values))[:, None]
    is_zero = norms <= EPSILON
    return torch.cat([(values / norms).masked_fill_(is_zero, 0.0), is_zero], dim=1)


def _cosines(left_BD: Tensor, right_BD: Tensor) -> Tensor:
    """The cosine of each pair of rows, ``(B,)`` float64 on the CPU."""
    left_BD, right_BD = left_BD.float(), right_BD.float()
    pairs = ((left_BD, right_BD), (left_BD, left_BD), (right_BD, right_BD))
    dot_B, *squares = ((one * other).sum(dim=1).cpu().double() for one, other in pairs)
    left_B, right_B = (_finite(square_B).clamp_min(EPSILON**2) for square_B in squares)
    is_zero_B = torch.maximum(left_B, right_B) <= EPSILON**2
    return (dot_B / (left_B * right_B).sqrt()).clamp(-1, 1).masked_fill(is_zero_B, 1.0)


def _finite(sizes: Tensor) -> Tensor:
    _require(sizes.isfinite().all(), "a token or row is not finite, or overflows float32")
    return sizes


def _require(holds: Tensor | bool, law: str) -> None:
    if not holds:
        raise FusionError(f"the quality of a fusion cannot be told: {law}")
