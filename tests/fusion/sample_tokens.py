"""Tokens to try fusion on, and what tests ask of plans."""

import torch
from hypothesis import strategies as st

from schemas.grid import TokenGrid

EPSILON = 1e-12

ROUNDING = 2e-6
"""Cosines that are closer than this may change sides."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def video(grid, num_channels, *, dtype=torch.float32, seed=0, noise=0.8):
    """Frames that resemble each other more or less, on top of a common background."""
    generator = seeded(seed)
    background = torch.randn(1, grid.tokens_per_frame, num_channels, generator=generator)
    change = torch.randn(grid.frames, grid.tokens_per_frame, num_channels, generator=generator)
    amount = noise * torch.rand(grid.frames, grid.tokens_per_frame, 1, generator=generator) * 2
    return (background + amount * change + 0.1).flatten(0, 1).to(dtype)


def signs(grid, num_channels, *, seed=0):
    """Tokens of +1 and -1; with 4 or 16 channels their cosines are exact, and many are equal."""
    shape = (grid.num_tokens, num_channels)
    return torch.randint(0, 2, shape, generator=seeded(seed)).mul(2).sub(1).float()


def plan_bytes(plan):
    tensors = (plan.keep_index, plan.match_index, plan.score, plan.storage_order)
    return (plan.anchor_frame, *(tensor.numpy().tobytes() for tensor in tensors))


def kept_per_frame(plan):
    frames = plan.keep_index // plan.grid.tokens_per_frame
    return torch.bincount(frames, minlength=plan.grid.frames).tolist()


@st.composite
def videos(draw):
    """Tokens of a random grid and type: now resembling frames, now signs with many ties."""
    grid = TokenGrid(draw(st.integers(1, 9)), *(draw(st.integers(1, 7)) for _ in range(2)))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**32))
    channels = draw(st.sampled_from([1, 3, 16, 40]))
    if draw(st.booleans()):
        return signs(grid, channels, seed=seed).to(dtype), grid
    return video(grid, channels, dtype=dtype, seed=seed), grid
