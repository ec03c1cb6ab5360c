"""What the fusion benchmarks measure: tokens, exact cosines, and peers from their formulas."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from schemas.grid import TokenGrid

Step = Callable[[], object]


def synthetic_tokens(grid: TokenGrid, num_channels: int, dtype: torch.dtype) -> Tensor:
    """A background that stays, with more or less change on top: about half the tokens fuse."""
    generator = torch.Generator().manual_seed(0)
    background_ND = torch.randn(grid.tokens_per_frame, num_channels, generator=generator)
    tokens = torch.empty(grid.frames, *background_ND.shape, dtype=dtype)
    for frame_ND in tokens:
        amount_N1 = torch.rand(len(frame_ND), 1, generator=generator) * 1.6
        change_ND = torch.randn(background_ND.shape, generator=generator)
        frame_ND.copy_(background_ND + amount_N1 * change_ND)
    return tokens.flatten(0, 1)


def exact_cosines(tokens: Tensor, grid: TokenGrid, anchor: int) -> Tensor:
    """Best cosine in the 3x3 window in float64, by shifting whole frames; the anchor included."""
    shape = (grid.frames, grid.height, grid.width, -1)
    unit = functional.normalize(tokens.double(), dim=1).view(shape)
    padded = functional.pad(unit[anchor], (0, 0, 1, 1, 1, 1))
    best = torch.full(shape[:3], -torch.inf, dtype=torch.float64)
    inside = functional.pad(torch.ones(grid.height, grid.width), (1, 1, 1, 1)).bool()
    for dy in range(3):
        for dx in range(3):
            window = (slice(dy, dy + grid.height), slice(dx, dx + grid.width))
            cosine = (unit * padded[window]).sum(-1)
            best = torch.maximum(best, cosine.masked_fill(~inside[window], -torch.inf))
    return best.flatten()


def exact_anchor(tokens: Tensor, grid: TokenGrid) -> int:
    means = tokens.double().view(grid.frames, grid.tokens_per_frame, -1).mean(dim=1)
    return int(torch.cosine_similarity(means, means.mean(dim=0, keepdim=True)).argmax())


def evs_mask(tokens: Tensor, grid: TokenGrid, keep: float) -> Tensor:
    """EVS as its authors order it: the cosine of whole tensors in their own type, a stable sort."""
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    similarity = functional.cosine_similarity(frames_TND[1:], frames_TND[:-1], dim=-1)
    first = torch.full_like(similarity[:1], 255.0)
    dissimilarity = torch.cat([first, 1 - similarity]).flatten()
    order = dissimilarity.argsort(descending=True, stable=True)
    is_kept = torch.zeros_like(dissimilarity, dtype=torch.bool)
    is_kept[order[: max(grid.tokens_per_frame, int(keep * grid.num_tokens))]] = True
    return is_kept


def framefusion_scores(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """FrameFusion's score as its authors order it: tokens sorted by patch, neighbours compared."""
    patch = torch.arange(grid.tokens_per_frame).repeat(grid.frames)
    order = patch.argsort(stable=True)
    rows, patch = tokens[order], patch[order]
    similarity = functional.cosine_similarity(rows[1:], rows[:-1], dim=-1)
    return similarity.masked_fill(patch[1:] != patch[:-1], -2.0)
