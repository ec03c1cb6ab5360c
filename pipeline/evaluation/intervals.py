"""Means over questions with 95 % intervals, by bootstrap over videos.

Questions about one video stand or fall together, so videos are resampled, each with all its
questions. All settings are resampled alike: their differences are paired.

Dimension key: S settings, Q questions, V videos, G groups, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000

CONFIDENCE = 0.95

_DRAWS_AT_ONCE = 1 << 22


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
    group_Q, num_groups = _numbered(groups_Q if groups_Q is not None else [0] * len(videos_Q))
    shape = num_videos, num_groups
    cell_Q = video_Q * num_groups + group_Q
    sums_SVG = np.stack([_summed(row, cell_Q, shape) for row in values])
    counts_VG = _summed(np.ones(len(cell_Q)), cell_Q, shape)
    whole_S = _means(np.ones((1, num_videos)), sums_SVG, counts_VG)[:, 0]
    resampled_SR = _resampled(sums_SVG, counts_VG, resamples, seed)
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


def _resampled(
    sums_SVG: NDArray[np.float64], counts_VG: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """``(S, R)`` means; the videos of resample r are row r of ``rng.integers(V, size=(R, V))``."""
    rng = np.random.default_rng(seed)
    num_videos = len(counts_VG)
    at_once = max(1, _DRAWS_AT_ONCE // num_videos)
    parts = []
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(num_videos, size=(rows, num_videos))
        drawn += np.arange(rows)[:, None] * num_videos
        times = np.bincount(drawn.ravel(), minlength=rows * num_videos)
        times_RV = times.reshape(rows, num_videos).astype(np.float64)
        parts.append(_means(times_RV, sums_SVG, counts_VG))
    return np.concatenate(parts, axis=1)


def _means(
    times_RV: NDArray[np.float64], sums_SVG: NDArray[np.float64], counts_VG: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``(S, R)``: the mean of the means of groups, each video counted ``times_RV`` times."""
    counts_RG = times_RV @ counts_VG
    is_there = counts_RG > 0
    means_SRG = (times_RV @ sums_SVG) / np.where(is_there, counts_RG, 1)
    means: NDArray[np.float64] = means_SRG.sum(axis=2) / is_there.sum(axis=1)
    return means


def _summed(
    values_Q: NDArray[np.float64], cell_Q: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Sums by video and group, of that shape."""
    sums = np.bincount(cell_Q, weights=values_Q, minlength=shape[0] * shape[1])
    return sums.reshape(shape).astype(np.float64)


def _numbered(names: Sequence[object]) -> tuple[NDArray[np.int64], int]:
    """Names as numbers from 0 in the order they appear, and how many differ."""
    numbers: dict[object, int] = {}
    found = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.array(found, dtype=np.int64), len(numbers)
