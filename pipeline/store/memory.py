"""Fresh memory for features: large blocks on huge pages, where first use costs a third."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from schemas.errors import ConfigError

if TYPE_CHECKING:
    import torch

HUGE_FROM_BYTES = 4 * 2**20
MAX_SPARES = 2
MAX_SPARE_BYTES = 128 * 2**20
_HUGE_PAGE = 2 * 2**20


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a safetensors feature type."""
    from pipeline.dtypes import TORCH_DTYPES

    return TORCH_DTYPES[name]


class RowMemory:
    """Where features are loaded to when the caller gives no place.

    Blocks of the last ``MAX_SPARES`` videos that were dropped are kept for the next of similar
    size: filling fresh pages costs as much again as reading. Threads may share this object; a
    block belongs to whoever took it off the queue, so none is given out twice.
    """

    def __init__(self) -> None:
        self._spare: deque[mmap.mmap] = deque(maxlen=MAX_SPARES)

    def __reduce__(self) -> tuple[type[RowMemory], tuple[()]]:
        return RowMemory, ()

    def empty_rows(
        self, num_rows: int, width: int, dtype: torch.dtype, *, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """``(num_rows, width)`` uninitialised on CPU; on huge pages from 4 MiB, where there are.

        Rows that will go to a CUDA ``device`` get page-locked memory, from which it copies by
        itself; torch keeps that for the next video, and not before the copy is done.
        """
        import torch

        if torch.device(device).type == "cuda":
            return torch.empty(num_rows, width, dtype=dtype, pin_memory=True)
        num_bytes = num_rows * width * dtype.itemsize
        if num_bytes < HUGE_FROM_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(num_rows, width, dtype=dtype)
        block = self._take(-(-num_bytes // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE)
        start = -np.frombuffer(block, np.uint8).ctypes.data % _HUGE_PAGE
        flat = np.frombuffer(block, np.uint8, count=num_bytes, offset=start)
        weakref.finalize(flat, self._give_back, block).atexit = False
        return torch.from_numpy(flat).view(dtype).view(num_rows, width)

    def _take(self, length: int) -> mmap.mmap:
        for _ in range(MAX_SPARES):
            try:
                block = self._spare.popleft()
            except IndexError:
                break
            if length <= len(block) <= 2 * length:
                return block
            self._spare.append(block)
        block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        if len(block) <= MAX_SPARE_BYTES:
            self._spare.append(block)


def rows_of(out: torch.Tensor, num_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """The first ``num_rows`` rows of a caller's tensor.

    Raises:
        ConfigError: too few rows, another width or type, not contiguous, or not on CPU.
    """
    fits = (
        out.ndim == 2
        and out.shape[0] >= num_rows
        and out.shape[1] == width
        and out.dtype == dtype
        and out.is_contiguous()
        and out.device.type == "cpu"
        and not out.requires_grad
    )
    if not fits:
        raise ConfigError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, expected a contiguous CPU "
            f"tensor of at least {num_rows} x {width} {dtype}; "
            "allocate it for the longest video and pass it again and again"
        )
    return out[:num_rows]


def byte_view(rows: torch.Tensor) -> memoryview:
    """The bytes of contiguous CPU rows, writable."""
    import torch

    return rows.view(torch.uint8).numpy().reshape(-1).data


def this_device(device: str | torch.device) -> torch.device:
    """``device``, with the number of the calling thread's GPU where it names none.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except TypeError as error:
        raise ConfigError(
            f"device {device!r} is not possible: expected a name as 'cpu' or 'cuda:0'"
        ) from error
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device {str(device)!r} cannot be used on this machine: {reason}; try 'cpu'"
        ) from error
    is_numbered = found.type != "cuda" or found.index is not None
    return found if is_numbered else torch.device("cuda", torch.cuda.current_device())


def wait_for_copies(device: str | torch.device) -> None:
    """Wait until what the calling thread began on a GPU is done; other threads may then use it."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.current_stream(device).synchronize()
