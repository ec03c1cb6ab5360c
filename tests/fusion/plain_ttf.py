"""TTF in plain loops in float64, written from the rules and nothing else, and tokens to try."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from tests.fusion.sample_tokens import EPSILON


@dataclass
class Reference:
    anchor: int
    anchor_margin: float
    best: np.ndarray
    match: np.ndarray
    margin: np.ndarray


def cosine(left, right):
    norms = max(np.linalg.norm(left), EPSILON) * max(np.linalg.norm(right), EPSILON)
    return float(left @ right) / norms


def reference(tokens, grid, window, anchor=None):
    frames = tokens.double().numpy().reshape(grid.frames, grid.height, grid.width, -1)
    means = frames.mean(axis=(1, 2))
    similarity = [cosine(mean, means.mean(axis=0)) for mean in means]
    ranked = sorted(similarity, reverse=True)
    if anchor is None:
        anchor = similarity.index(max(similarity))
    best = np.full((grid.frames, grid.height, grid.width), -np.inf)
    match = np.zeros(best.shape, dtype=np.int64)
    margin = np.full(best.shape, np.inf)
    half = window // 2
    for t, y, x in np.ndindex(best.shape):
        if t == anchor:
            match[t, y, x] = (t * grid.height + y) * grid.width + x
            continue
        for v in range(max(0, y - half), min(grid.height, y + half + 1)):
            for u in range(max(0, x - half), min(grid.width, x + half + 1)):
                value = cosine(frames[t, y, x], frames[anchor, v, u])
                if value > best[t, y, x]:
                    margin[t, y, x] = value - best[t, y, x]
                    best[t, y, x] = value
                    match[t, y, x] = (anchor * grid.height + v) * grid.width + u
                else:
                    margin[t, y, x] = min(margin[t, y, x], best[t, y, x] - value)
    return Reference(
        anchor=anchor,
        anchor_margin=ranked[0] - ranked[1] if len(ranked) > 1 else 1.0,
        best=best.ravel(),
        match=match.ravel(),
        margin=margin.ravel(),
    )


def exact_cosines(tokens, grid, anchor):
    """All 3x3 cosines in float64, by shifting whole frames."""
    shape = (grid.frames, grid.height, grid.width, -1)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1).view(shape)
    best = torch.full(shape[:3], -torch.inf, dtype=torch.float64)
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        rows = slice(max(0, -dy), grid.height - max(0, dy))
        columns = slice(max(0, -dx), grid.width - max(0, dx))
        from_rows = slice(max(0, dy), grid.height + min(0, dy))
        from_columns = slice(max(0, dx), grid.width + min(0, dx))
        value = (unit[:, rows, columns] * unit[anchor, from_rows, from_columns]).sum(-1)
        best[:, rows, columns] = torch.maximum(best[:, rows, columns], value)
    return best.flatten()
