"""Frame sums and the windowed match compiled by numba: the fast form on a CPU.

Dimension key: T token frames, N cells of a frame, D channels, P places of the window; V stored
values of a row: D float32 values, or D/2 words of two bfloat16 values. Rows are read as they are
stored, so that nothing is copied; sums are float32. Loops run without Python's lock, on as many
threads as torch may use; how they are split changes no bit.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from pipeline.fusion.cosine import EPSILON, require_finite_norms
from pipeline.fusion.forms import warn_of_torch
from pipeline.fusion.window import window_cells
from schemas.grid import TokenGrid

_Array = npt.NDArray[Any]

_SPLIT_SUMS = {"reassoc", "contract", "nsz"}
"""Sums may be split over vector lanes; NaN and infinity keep their meaning."""

_PLACES_AT_A_TIME = 3


def reads(tokens: Tensor) -> bool:
    """Whether these tokens can be given to this form: float32, or bfloat16 in pairs."""
    in_pairs = tokens.shape[1] % 2 == 0 and tokens.storage_offset() % 2 == 0
    is_known = tokens.dtype == torch.float32 or (tokens.dtype == torch.bfloat16 and in_pairs)
    return tokens.device.type == "cpu" and is_known and runs()


@cache
def runs() -> bool:
    """Whether the kernels compile and run here; warns once where they do not.

    A cache folder that is full or damaged shows only then.
    """
    try:
        for dtype in (torch.float32, torch.bfloat16):
            tokens = torch.ones(1, 2, dtype=dtype)
            frame_sums(tokens, TokenGrid(1, 1, 1))
            match_plane(tokens, tokens, TokenGrid(1, 1, 1), window=1)
    except Exception as error:  # whatever a compiler or its cache fails with
        warn_of_torch("numba", error)
        return False
    return True


@torch.no_grad()
def frame_sums(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """As ``pipeline.fusion.window.frame_sums``, for tokens that this form ``reads``."""
    rows_TNV = _stored(tokens, grid)
    sums_TD = np.empty((grid.frames, tokens.shape[1]), np.float32)
    _on_threads(grid.frames, lambda start, stop: _sum_frames(rows_TNV, start, stop, sums_TD))
    return torch.from_numpy(sums_TD)


@torch.no_grad()
def match_plane(
    tokens: Tensor, plane_ND: Tensor, grid: TokenGrid, *, window: int
) -> tuple[Tensor, Tensor]:
    """As ``pipeline.fusion.window.match_plane``, for tokens that this form ``reads``."""
    rows_TNV = _stored(tokens, grid)
    plane_NV = _stored(plane_ND.contiguous(), TokenGrid(1, grid.height, grid.width))[0]
    plane_norm_N = np.empty(len(plane_NV), np.float32)
    _norms(plane_NV, plane_norm_N)
    require_finite_norms(torch.from_numpy(plane_norm_N), grid)
    places_NP = window_cells(grid, window, multiple=_PLACES_AT_A_TIME).numpy()
    best_TN, square_TN = np.empty((2, *rows_TNV.shape[:2]), np.float32)
    cell_TN = np.empty(rows_TNV.shape[:2], np.int64)
    _on_threads(
        grid.tokens_per_frame,
        lambda start, stop: _match_cells(
            rows_TNV, plane_NV, plane_norm_N, places_NP, start, stop, best_TN, cell_TN, square_TN
        ),
    )
    norm_TN = torch.from_numpy(square_TN).sqrt_().clamp_min_(EPSILON)
    require_finite_norms(norm_TN, grid)
    return torch.from_numpy(best_TN).div_(norm_TN), torch.from_numpy(cell_TN)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call, and kept on disk where there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the installation nor a home folder can be written
        return njit(nogil=True)(function)


def _stored(tokens: Tensor, grid: TokenGrid) -> _Array:
    """The rows as numpy sees them, ``(T, N, V)``: numpy has no bfloat16, so two make a uint32."""
    shape = grid.frames, grid.tokens_per_frame, -1
    if tokens.dtype == torch.float32:
        return tokens.view(shape).numpy()
    return tokens.reshape(-1).view(torch.int32).view(shape).numpy().view(np.uint32)


def _on_threads(length: int, work: Callable[[int, int], None]) -> None:
    """Do ``work`` on all of ``range(length)``, cut into a part for each thread."""
    count = min(torch.get_num_threads(), length)
    if count == 1:
        work(0, length)
    else:
        bounds = np.linspace(0, length, count + 1).astype(int).tolist()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(work, bounds[:-1], bounds[1:]))


@njit(inline="always")
def _low(word: Any) -> Any:
    """The first of two bfloat16 values, as a float32."""
    return np.uint32(word << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _high(word: Any) -> Any:
    """The second of two bfloat16 values, as a float32."""
    return np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)


def _add_row(row_V: Any, sums_D: Any) -> Any:
    """Add one stored row to float32 sums."""
    raise NotImplementedError("compiled code calls one of the overloads")


def _square(row_V: Any) -> Any:
    """Sum of the squares of one stored row."""
    raise NotImplementedError("compiled code calls one of the overloads")


def _dots(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any, z: Any) -> Any:
    """The twelve dot products of four stored rows with three others."""
    raise NotImplementedError("compiled code calls one of the overloads")


@overload(_add_row)
def _add_row_overload(row_V: Any, sums_D: Any) -> Any:
    def of_pairs(row_V: Any, sums_D: Any) -> Any:
        for v in range(len(row_V)):
            sums_D[2 * v] += _low(row_V[v])
            sums_D[2 * v + 1] += _high(row_V[v])

    def of_float32(row_V: Any, sums_D: Any) -> Any:
        for v in range(len(row_V)):
            sums_D[v] += row_V[v]

    return of_pairs if row_V.dtype == types.uint32 else of_float32


@overload(_square, jit_options={"fastmath": _SPLIT_SUMS})
def _square_overload(row_V: Any) -> Any:
    def of_pairs(row_V: Any) -> Any:
        total = np.float32(0)
        for v in range(len(row_V)):
            low, high = _low(row_V[v]), _high(row_V[v])
            total += low * low + high * high
        return total

    def of_float32(row_V: Any) -> Any:
        total = np.float32(0)
        for v in range(len(row_V)):
            total += row_V[v] * row_V[v]
        return total

    return of_pairs if row_V.dtype == types.uint32 else of_float32


@overload(_dots, jit_options={"fastmath": _SPLIT_SUMS})
def _dots_overload(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any, z: Any) -> Any:
    def of_pairs(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any, z: Any) -> Any:
        ax = ay = az = bx = by = bz = cx = cy = cz = dx = dy = dz = np.float32(0)
        for v in range(len(x)):
            x0, y0, z0 = _low(x[v]), _low(y[v]), _low(z[v])
            x1, y1, z1 = _high(x[v]), _high(y[v]), _high(z[v])
            low, high = _low(a[v]), _high(a[v])
            ax += low * x0 + high * x1
            ay += low * y0 + high * y1
            az += low * z0 + high * z1
            low, high = _low(b[v]), _high(b[v])
            bx += low * x0 + high * x1
            by += low * y0 + high * y1
            bz += low * z0 + high * z1
            low, high = _low(c[v]), _high(c[v])
            cx += low * x0 + high * x1
            cy += low * y0 + high * y1
            cz += low * z0 + high * z1
            low, high = _low(d[v]), _high(d[v])
            dx += low * x0 + high * x1
            dy += low * y0 + high * y1
            dz += low * z0 + high * z1
        return (ax, ay, az), (bx, by, bz), (cx, cy, cz), (dx, dy, dz)

    def of_float32(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any, z: Any) -> Any:
        ax = ay = az = bx = by = bz = cx = cy = cz = dx = dy = dz = np.float32(0)
        for v in range(len(x)):
            ax += a[v] * x[v]
            ay += a[v] * y[v]
            az += a[v] * z[v]
            bx += b[v] * x[v]
            by += b[v] * y[v]
            bz += b[v] * z[v]
            cx += c[v] * x[v]
            cy += c[v] * y[v]
            cz += c[v] * z[v]
            dx += d[v] * x[v]
            dy += d[v] * y[v]
            dz += d[v] * z[v]
        return (ax, ay, az), (bx, by, bz), (cx, cy, cz), (dx, dy, dz)

    return of_pairs if x.dtype == types.uint32 else of_float32


@_compiled
def _sum_frames(rows_TNV: _Array, start: int, stop: int, sums_TD: _Array) -> None:
    for t in range(start, stop):
        sums_TD[t] = 0
        for n in range(rows_TNV.shape[1]):
            _add_row(rows_TNV[t, n], sums_TD[t])


@_compiled
def _norms(rows_NV: _Array, norms_N: _Array) -> None:
    for n in range(len(rows_NV)):
        norms_N[n] = max(np.sqrt(_square(rows_NV[n])), np.float32(EPSILON))


@_compiled
def _match_cells(
    rows_TNV: _Array,
    plane_NV: _Array,
    plane_norm_N: _Array,
    places_NP: _Array,
    start: int,
    stop: int,
    best_TN: _Array,
    cell_TN: _Array,
    square_TN: _Array,
) -> None:
    """Best dot product over the plane's norm, its cell, and the square of each token's norm.

    Four frames share each plane row that is loaded, three places each token. Cells follow each
    other as they lie in memory. The last four frames overlap those before them where four does not
    divide their number.
    """
    last = len(rows_TNV) - 1
    for block in range(0, last + 1, 4):
        first = max(min(block, last - 3), 0)
        frames = (first, min(first + 1, last), min(first + 2, last), min(first + 3, last))
        for n in range(start, stop):
            for t in frames:
                square_TN[t, n] = _square(rows_TNV[t, n])
                best_TN[t, n] = -np.inf
                cell_TN[t, n] = n
            for p in range(0, places_NP.shape[1], 3):
                places = (places_NP[n, p], places_NP[n, p + 1], places_NP[n, p + 2])
                dots = _dots(
                    rows_TNV[frames[0], n],
                    rows_TNV[frames[1], n],
                    rows_TNV[frames[2], n],
                    rows_TNV[frames[3], n],
                    plane_NV[places[0]],
                    plane_NV[places[1]],
                    plane_NV[places[2]],
                )
                for i in range(4):
                    for j in range(3):
                        t, cell = frames[i], places[j]
                        cosine = dots[i][j] / plane_norm_N[cell]
                        if cosine > best_TN[t, n]:
                            best_TN[t, n] = cosine
                            cell_TN[t, n] = cell
