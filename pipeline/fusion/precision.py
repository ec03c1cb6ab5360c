"""Arithmetic in true float32, whatever the process has switched on for speed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _TrueFloat32:
    """The process's speed settings, suspended while anybody is inside.

    They belong to all threads: the first that enters saves them, the last that leaves puts them
    back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._restore: Callable[[], None] = lambda: None

    def enter(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._restore = _suspend_speed_settings()
            self._num_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._restore()


def _suspend_speed_settings() -> Callable[[], None]:
    """Switch TF32 and bfloat16 products off; returns what switches them back."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(legacy)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"

    def restore() -> None:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision

    return restore


_TRUE_FLOAT32 = _TrueFloat32()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Products of float32 tensors inside are neither TF32, nor bfloat16, nor autocast.

    A decision must not depend on a speed setting made elsewhere for the language model. The
    settings are those of the process: another thread's products are exact meanwhile too.
    """
    _TRUE_FLOAT32.enter()
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        _TRUE_FLOAT32.leave()


def as_float32(values: Tensor, buffer: Tensor) -> Tensor:
    """The values themselves where they are float32, otherwise a copy in ``buffer``."""
    return values if values.dtype == torch.float32 else buffer.copy_(values)
