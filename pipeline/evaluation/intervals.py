"""Means over questions with 95 % intervals, by bootstrap over videos.

Questions about one video stand or fall together, so videos are resampled, each with all its
questions. All settings are resampled alike: their differences are paired.

Dimension key: S settings, Q questions, V videos, G groups, R resamples, C cells: pairs of a video
and a group with at least one question, ordered by group; at most Q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000

CONFIDENCE = 0.95

_DRAWS_AT_ONCE = 1 << 21
"""Numbers in one array; some ten such arrays are in memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its interval; all three are equal where there is one video."""

    value: float
    low: float
    high: float


def mean_intervals(
    values_SQ: ArrayLike,
    videos_Q: Sequence[object],
    *,
    groups_Q: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """The mean over questions of each setting, with the interval that 95 % of resamples fall into.

    Args:
        values_SQ: ``(S, Q)`` numbers: right or wrong for accuracies, right minus right in the
            reference for paired differences.
        videos_Q: Q names; equal ones are one video.
        groups_Q: Q names; given them, a mean is that of the groups' means. A group that a resample
            misses does not count there.
        resamples: R, each of V videos drawn with replacement.
        seed: of the draw; equal seeds draw equally for equal V.

    Returns:
        S intervals.

    Raises:
        ValueError: no question, or lengths that differ.
    """
    values = np.atleast_2d(np.asarray(values_SQ, dtype=np.float64))
    if values.shape[1] != len(videos_Q) or not len(videos_Q):
        raise ValueError(f"{values.shape[1]} values for {len(videos_Q)} questions; expected equal")
    video_Q, num_videos = _numbered(videos_Q)
    group_Q, _ = _numbered(groups_Q if groups_Q is not None else [0] * len(videos_Q))
    cells = _sum_cells(values, video_Q, group_Q, num_videos)
    whole_S = cells.means(np.ones((1, num_videos)))[:, 0]
    resampled_SR = _resampled(cells, num_videos, resamples, seed)
    tail = 100 * (1 - CONFIDENCE) / 2
    low_S, high_S = np.percentile(resampled_SR, [tail, 100 - tail], axis=1)
    return [
        Interval(float(value), float(low), float(high))
        for value, low, high in zip(whole_S, low_S, high_S, strict=True)
    ]


def paired_intervals(
    is_right_SQ: ArrayLike,
    reference_Q: ArrayLike,
    videos_Q: Sequence[object],
    *,
    groups_Q: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Accuracy of each setting minus that of a reference on the same questions.

    Args:
        is_right_SQ: ``(S, Q)`` bool.
        reference_Q: ``(Q,)`` bool.
        videos_Q: as for ``mean_intervals``.
        groups_Q: as for ``mean_intervals``.
        resamples: as for ``mean_intervals``.
        seed: as for ``mean_intervals``.

    Raises:
        ValueError: as ``mean_intervals``.
    """
    right = np.atleast_2d(np.asarray(is_right_SQ, dtype=np.float64))
    differences_SQ = right - np.asarray(reference_Q, dtype=np.float64)
    return mean_intervals(
        differences_SQ, videos_Q, groups_Q=groups_Q, resamples=resamples, seed=seed
    )


@dataclass(frozen=True, slots=True)
class _Cells:
    """Sums by video and group; no array is as large as V times G.

    Attributes:
        videos: ``(C,)`` number of each cell's video.
        counts: ``(C,)`` questions in it.
        sums: ``(S, C)`` sums of their values.
        starts: ``(G,)`` first cell of each group.
    """

    videos: NDArray[np.int64]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    starts: NDArray[np.int64]

    def means(self, times_RV: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(S, R)``: the mean of the means of groups, each video counted ``times_RV`` times."""
        times_RC = times_RV[:, self.videos]
        counts_RG = np.add.reduceat(times_RC * self.counts, self.starts, axis=1)
        is_there_RG = counts_RG > 0
        counts_RG[~is_there_RG] = 1
        means = np.empty((len(self.sums), len(times_RV)))
        for means_R, sums_C in zip(means, self.sums, strict=True):
            sums_RG = np.add.reduceat(times_RC * sums_C, self.starts, axis=1)
            means_R[:] = (sums_RG / counts_RG).sum(axis=1) / is_there_RG.sum(axis=1)
        return means


def _sum_cells(
    values_SQ: NDArray[np.float64],
    video_Q: NDArray[np.int64],
    group_Q: NDArray[np.int64],
    num_videos: int,
) -> _Cells:
    pairs_C, cell_Q = np.unique(group_Q * num_videos + video_Q, return_inverse=True)
    return _Cells(
        videos=pairs_C % num_videos,
        counts=np.bincount(cell_Q).astype(np.float64),
        sums=np.stack([np.bincount(cell_Q, weights=values_Q) for values_Q in values_SQ]),
        starts=np.flatnonzero(np.diff(pairs_C // num_videos, prepend=-1)),
    )


def _resampled(cells: _Cells, num_videos: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """``(S, R)`` means; the videos of resample r are row r of ``rng.integers(V, size=(R, V))``."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // max(num_videos, len(cells.videos)))
    parts = []
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(num_videos, size=(rows, num_videos))
        drawn += np.arange(rows)[:, None] * num_videos
        times = np.bincount(drawn.ravel(), minlength=rows * num_videos)
        parts.append(cells.means(times.reshape(rows, num_videos).astype(np.float64)))
    return np.concatenate(parts, axis=1)


def _numbered(names: Sequence[object]) -> tuple[NDArray[np.int64], int]:
    """Names as numbers from 0 in the order they appear, and how many differ."""
    numbers: dict[object, int] = {}
    found = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.array(found, dtype=np.int64), len(numbers)
