# mypy: disallow-untyped-decorators=False
"""Frame sums and the windowed match as Triton kernels: the form for a GPU.

Dimension key: T token frames, N = H*W cells of a frame, D channels. A program of the match takes a
span of one grid row in several frames, and the places of the plane that their windows touch. The
tokens are read once, as they are stored; a product of two bfloat16 values is exact in float32.

No sum is one long chain: a tensor core cuts off what it adds to an accumulator (Fasi et al. 2021,
doi 10.7717/peerj-cs.330), and a chain of 4096 roundings can err by more than 2e-6. Each block of
channels is summed from zero and then rounded into the total. The order of a sum is fixed and there
are no atomics: the same tokens give the same bits.

Shown: results, in Triton's interpreter; that the compiler makes code for Ampere and Hopper that
spills no register. Not shown: any run on a GPU, any time. Block sizes are chosen by arithmetic.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.fusion.cosine import EPSILON, norm, require_finite_norms
from pipeline.fusion.forms import warn_of_torch
from schemas.grid import TokenGrid

_PLACES = 64
"""Places of a program, where a window has no more: 64 x 64 sums stay in registers."""

_TOKENS = (64, 32, 16)
"""Tokens of a program. More share what is read of the plane, fewer keep more processors at work."""

_PROGRAMS = 108
"""Enough for the 108 processors of an A100 and nearly for the 132 of an H200."""

_ROW_BYTES = 128
"""Bytes of a row that are read at a time, one line of the cache: 64 channels of bfloat16."""

_STAGES = 5
"""Four buffers of 128 rows are 64 KiB: two programs share an A100's processor, three an H200's."""

_SUMMED_CELLS = 32
_SUMMED_CHANNELS = 128
"""Sums of 32 frames of 4096 channels are 1024 programs; each reads 8 KiB of bfloat16 at a time."""

_OPERANDS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
_LEAST_NORM = tl.constexpr(EPSILON)


def reads(tokens: Tensor) -> bool:
    """Whether these tokens can be given to this form: on an Nvidia GPU from Ampere on."""
    return (
        tokens.dtype in _OPERANDS
        and tokens.is_cuda
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(tokens.device) >= (8, 0)
        and runs_on(tokens.device)
    )


@cache
def runs_on(device: torch.device) -> bool:
    """Whether Triton can compile and start a kernel for ``device``; warns once where it cannot.

    It needs a C compiler and Python's headers, which lean images leave out.
    """
    try:
        frame_sums(torch.ones(1, 1, dtype=torch.float32, device=device), TokenGrid(1, 1, 1))
    except Exception as error:  # whatever a compiler, a linker or a driver fails with
        advice = "Install a C compiler and Python's headers."
        warn_of_torch(f"triton on {device}", error, advice=advice)
        return False
    return True


@torch.no_grad()
def frame_sums(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """As ``pipeline.fusion.window.frame_sums``, for tokens that ``reads`` accepts."""
    num_channels = tokens.shape[1]
    sums_TD = torch.empty(grid.frames, num_channels, dtype=torch.float32, device=tokens.device)
    num_blocks = triton.cdiv(num_channels, _SUMMED_CHANNELS)
    with torch.cuda.device(tokens.get_device()):
        _sum_frame[(grid.frames * num_blocks,)](
            tokens.contiguous(),
            sums_TD,
            grid.tokens_per_frame,
            num_channels,
            CELLS=_SUMMED_CELLS,
            CHANNELS=_SUMMED_CHANNELS,
            enable_fp_fusion=True,
        )
    return sums_TD


@torch.no_grad()
def match_plane(
    tokens: Tensor, plane_ND: Tensor, grid: TokenGrid, *, window: int
) -> tuple[Tensor, Tensor]:
    """As ``pipeline.fusion.window.match_plane``, for tokens that ``reads`` accepts."""
    layout = layout_of(grid, window)
    plane_norm_N = norm(plane_ND.float())
    best_TN = torch.empty(
        grid.frames, grid.tokens_per_frame, dtype=torch.float32, device=tokens.device
    )
    norm_TN = torch.empty_like(best_TN)
    cell_TN = torch.empty_like(best_TN, dtype=torch.int64)
    operand = _operand_type(tokens.dtype)
    with torch.cuda.device(tokens.get_device()):
        _match_tokens[(layout.num_programs,)](
            tokens.contiguous(),
            plane_ND.contiguous(),
            plane_norm_N,
            best_TN,
            cell_TN,
            norm_TN,
            grid.frames,
            grid.height,
            grid.width,
            tokens.shape[1],
            window // 2,
            layout.frames,
            layout.span,
            TOKENS=layout.num_tokens,
            PLACES=layout.num_places,
            CHANNELS=_ROW_BYTES * 8 // operand.primitive_bitwidth,
            OPERAND=operand,
            num_stages=_STAGES,
            enable_fp_fusion=True,
        )
    require_finite_norms(plane_norm_N, grid)
    require_finite_norms(norm_TN, grid)
    return best_TN, cell_TN


@dataclass(frozen=True, slots=True)
class Layout:
    """What one program of the match takes.

    Attributes:
        frames: token frames.
        span: neighbouring cells of one grid row.
        num_tokens: ``frames * span`` filled up to a power of two, 16 at least.
        num_places: cells of the plane that their windows touch, filled up likewise.
        num_programs: programs that cover the grid.
    """

    frames: int
    span: int
    num_tokens: int
    num_places: int
    num_programs: int


def layout_of(grid: TokenGrid, window: int) -> Layout:
    """The largest blocks that leave enough programs, otherwise the smallest.

    Args:
        grid: the grid of the tokens.
        window: odd side of the square that is searched.
    """
    rows = min(window, grid.height)
    widest = _PLACES // rows
    if widest < grid.width:
        widest = max(widest - window + 1, 1)
    num_spans = -(-grid.width // widest)
    span = -(-grid.width // num_spans)
    for limit in _TOKENS:
        frames = min(max(limit // span, 1), grid.frames)
        num_programs = num_spans * grid.height * -(-grid.frames // frames)
        if num_programs >= _PROGRAMS:
            break
    return Layout(
        frames=frames,
        span=span,
        num_tokens=_power_of_two(frames * span),
        num_places=_power_of_two(rows * min(span + window - 1, grid.width)),
        num_programs=num_programs,
    )


def _power_of_two(length: int) -> int:
    """The power of two that is at least ``length``, and at least the 16 that ``tl.dot`` needs."""
    return max(1 << (length - 1).bit_length(), 16)


def _operand_type(dtype: torch.dtype) -> tl.dtype:
    """The type that products are taken of.

    Triton's interpreter multiplies bfloat16 as the integers it is stored in: there operands are
    float32, the same numbers.
    """
    is_compiled = isinstance(_match_tokens, triton.JITFunction)
    return _OPERANDS[dtype] if is_compiled else tl.float32


@triton.jit(do_not_specialize=["num_cells"])
def _sum_frame(
    tokens: tl.tensor,
    sums: tl.tensor,
    num_cells: tl.tensor,
    num_channels: tl.tensor,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Add up ``CHANNELS`` channels of one frame, ``CELLS`` rows at a time."""
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    frame = (tl.program_id(0) // num_blocks).to(tl.int64)
    channel = tl.program_id(0) % num_blocks * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < num_channels
    total = tl.zeros((CELLS, CHANNELS), tl.float32)
    for first in range(0, num_cells, CELLS):
        cell = first + tl.arange(0, CELLS)
        row = (frame * num_cells + cell) * num_channels
        total += tl.load(
            tokens + row[:, None] + channel[None, :],
            mask=(cell < num_cells)[:, None] & is_channel[None, :],
            other=0.0,
        ).to(tl.float32)
    tl.store(sums + frame * num_channels + channel, tl.sum(total, axis=0), mask=is_channel)


@triton.jit(do_not_specialize=["num_frames", "height", "width", "half", "frames", "span"])
def _match_tokens(
    tokens: tl.tensor,
    plane: tl.tensor,
    plane_norms: tl.tensor,
    bests: tl.tensor,
    cells: tl.tensor,
    norms: tl.tensor,
    num_frames: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    num_channels: tl.tensor,
    half: tl.tensor,
    frames: tl.tensor,
    span: tl.tensor,
    TOKENS: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Match ``span`` cells of one grid row in ``frames`` frames."""
    num_spans = tl.cdiv(width, span)
    first_x = tl.program_id(0) % num_spans * span
    y = tl.program_id(0) // num_spans % height
    block = tl.program_id(0) // num_spans // height

    number = tl.arange(0, TOKENS)
    frame = block * frames + number // span
    x = first_x + number % span
    is_token = (number < frames * span) & (frame < num_frames) & (x < width)
    token = (frame.to(tl.int64) * height + y) * width + x

    window_rows = tl.minimum(2 * half + 1, height)
    window_columns = tl.minimum(span + 2 * half, width)
    place = tl.arange(0, PLACES)
    first_v = tl.maximum(tl.minimum(y - half, height - window_rows), 0)
    first_u = tl.maximum(tl.minimum(first_x - half, width - window_columns), 0)
    v = first_v + place // window_columns
    u = first_u + place % window_columns
    is_place = (place < window_rows * window_columns) & (tl.abs(v - y) <= half)
    cell = v * width + u

    dots, squares = _dots_and_squares(
        tokens + token * num_channels,
        is_token,
        plane + cell.to(tl.int64) * num_channels,
        is_place,
        num_channels,
        CHANNELS,
        OPERAND,
    )
    is_near = is_place[None, :] & (tl.abs(u[None, :] - x[:, None]) <= half)
    plane_norm = tl.load(plane_norms + cell, mask=is_place, other=1.0)
    cosine = tl.where(is_near, tl.div_rn(dots, plane_norm[None, :]), float("-inf"))
    best = tl.max(cosine, axis=1)
    earliest = tl.min(tl.where(cosine == best[:, None], place[None, :], PLACES), axis=1)
    token_norm = tl.sqrt_rn(squares)
    match = (first_v + earliest // window_columns) * width + first_u + earliest % window_columns
    tl.store(bests + token, tl.div_rn(best, tl.maximum(token_norm, _LEAST_NORM)), mask=is_token)
    tl.store(cells + token, match, mask=is_token)
    tl.store(norms + token, token_norm, mask=is_token)


@triton.jit
def _dots_and_squares(
    token_rows: tl.tensor,
    is_token: tl.tensor,
    plane_rows: tl.tensor,
    is_place: tl.tensor,
    num_channels: tl.tensor,
    CHANNELS: tl.constexpr,
    OPERAND: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Dot products of tokens and places, and the sum of squares of each token.

    The addition is written as a fused one because ``dots += tl.dot(...)`` is compiled to one chain.
    """
    dots = tl.zeros((token_rows.shape[0], plane_rows.shape[0]), tl.float32)
    squares = tl.zeros((token_rows.shape[0],), tl.float32)
    for first in range(0, num_channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        is_channel = channel < num_channels
        values = tl.load(
            token_rows[:, None] + channel[None, :],
            mask=is_token[:, None] & is_channel[None, :],
            other=0.0,
        )
        places = tl.load(
            plane_rows[None, :] + channel[:, None],
            mask=is_place[None, :] & is_channel[:, None],
            other=0.0,
        )
        block = tl.dot(values.to(OPERAND), places.to(OPERAND), input_precision="ieee")
        dots = tl.fma(block, 1.0, dots)
        wide = values.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
    return dots, squares
