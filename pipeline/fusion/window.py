"""The windowed match in plain torch: which token of a plane is most alike, near the same cell.

Dimension key: T token frames, N = H*W cells of a frame, D channels, P places of the window;
C cells and F frames of one block. A plane is N tokens, one for each cell: an anchor frame, say.
"""

import torch
from torch import Tensor

from pipeline.fusion.blocks import MULTIPLE, equal_blocks
from pipeline.fusion.cosine import norm, require_finite_norms
from pipeline.fusion.precision import as_float32, full_precision
from schemas.grid import TokenGrid

_FRAMES_PER_BLOCK = 32
_WINDOW_VALUES_ON_CPU = 2**18
_WINDOW_VALUES_ELSEWHERE = 2**24
"""Plane values gathered at a time: on a CPU they stay in its cache, a GPU is kept busy."""


@torch.no_grad()
def frame_sums(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Sum of the tokens of every frame, ``(T, D)`` float32; one read of the tokens.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    ones_1N = torch.ones(1, grid.tokens_per_frame, dtype=torch.float32, device=tokens.device)
    room_ND = torch.empty(frames_TND.shape[1:], dtype=torch.float32, device=tokens.device)
    sums_TD = torch.empty(grid.frames, tokens.shape[1], dtype=torch.float32, device=tokens.device)
    with full_precision(tokens.device.type):
        for t, frame in enumerate(frames_TND):
            torch.mm(ones_1N, as_float32(frame, room_ND), out=sums_TD[t : t + 1])
    return sums_TD


@torch.no_grad()
def match_plane(
    tokens: Tensor, plane_ND: Tensor, grid: TokenGrid, *, window: int
) -> tuple[Tensor, Tensor]:
    """The greatest cosine of every token with the tokens of a plane around its cell.

    Args:
        tokens: ``(T*N, D)`` floating.
        plane_ND: ``(N, D)`` in the same type.
        grid: the grid of ``tokens``.
        window: odd side of the square that is searched, clipped at the borders.

    Returns:
        ``(T, N)`` float32 cosines and ``(T, N)`` int64 cells of the plane; the earliest of equals,
        row by row.

    Raises:
        FusionError: tokens that are not finite, or so large that a norm overflows float32.
    """
    with full_precision(tokens.device.type):
        return _match_blocks(_fill_channels(tokens), _fill_channels(plane_ND), grid, window)


def _match_blocks(
    tokens: Tensor, plane_ND: Tensor, grid: TokenGrid, window: int
) -> tuple[Tensor, Tensor]:
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    window_NP = window_cells(grid, window, multiple=MULTIPLE).to(tokens.device)
    best_TN, norm_TN = torch.empty(
        2, *frames_TND.shape[:2], dtype=torch.float32, device=tokens.device
    )
    cell_TN = torch.empty(frames_TND.shape[:2], dtype=torch.int64, device=tokens.device)
    cell_blocks, frame_blocks = _blocks(tokens, grid, window_NP.shape[1])
    # The large temporaries are made once: fresh pages cost more than the arithmetic on them.
    shape_CPD = cell_blocks[0].stop, window_NP.shape[1], tokens.shape[1]
    stored_CPD = plane_ND.new_empty(shape_CPD)
    is_float32 = tokens.dtype == torch.float32
    room_CPD = stored_CPD if is_float32 else stored_CPD.new_empty(shape_CPD, dtype=torch.float32)
    block_FCD = room_CPD.new_empty(frame_blocks[0].stop, cell_blocks[0].stop, tokens.shape[1])
    plane_norm_N = _plane_norms(plane_ND, block_FCD.flatten(0, 1))
    for cells in cell_blocks:
        places_CP = window_NP[cells]
        torch.index_select(plane_ND, 0, places_CP.flatten(), out=stored_CPD.flatten(0, 1))
        places_CPD = as_float32(stored_CPD, room_CPD)
        for frames in frame_blocks:
            values_FCD = as_float32(frames_TND[frames, cells], block_FCD)
            dots_CFP = values_FCD.transpose(0, 1) @ places_CPD.transpose(1, 2)
            cosine_CF, place_CF = (dots_CFP / plane_norm_N[places_CP].unsqueeze(1)).max(dim=2)
            best_TN[frames, cells] = cosine_CF.T
            cell_TN[frames, cells] = places_CP.gather(1, place_CF).T
            norm_TN[frames, cells] = norm(values_FCD, squares=block_FCD)
    require_finite_norms(norm_TN, grid)
    return best_TN.div_(norm_TN), cell_TN


def _plane_norms(plane_ND: Tensor, room_RD: Tensor) -> Tensor:
    """Norms of the plane's tokens, ``(N,)`` float32, as many at a time as there is room for."""
    norms = []
    for first in range(0, len(plane_ND), len(room_RD)):
        rows = plane_ND[first : first + len(room_RD)]
        values = as_float32(rows, room_RD[: len(rows)])
        norms.append(norm(values, squares=room_RD[: len(rows)]))
    return torch.cat(norms)


def window_cells(grid: TokenGrid, window: int, *, multiple: int) -> Tensor:
    """Cells of a frame in the window around each cell, ``(N, P)`` int64, row by row.

    Places beyond a border repeat the border's cell, and the last one is repeated until P is a
    multiple: to a maximum, of which the earliest place counts, a repetition means nothing.
    """
    offsets = torch.arange(window) - window // 2
    rows = (torch.arange(grid.height)[:, None] + offsets).clamp(0, grid.height - 1)
    columns = (torch.arange(grid.width)[:, None] + offsets).clamp(0, grid.width - 1)
    cells_NP = (rows[:, None, :, None] * grid.width + columns[None, :, None, :]).reshape(
        grid.tokens_per_frame, window**2
    )
    missing = -(window**2) % multiple
    return torch.cat([cells_NP, cells_NP[:, -1:].expand(-1, missing)], dim=1)


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
    missing = -tokens.shape[1] % MULTIPLE
    return torch.nn.functional.pad(tokens, (0, missing)) if missing else tokens
