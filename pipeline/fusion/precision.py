"""Arithmetic in true float32, whatever the process has switched on for speed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Products of float32 tensors inside are neither TF32, nor bfloat16, nor autocast.

    A decision must not depend on a speed setting made elsewhere for the language model. The
    settings are those of the process: they are put back on leaving.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    if all(hasattr(backend, "fp32_precision") for backend in backends):
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            with torch.autocast(device_type, enabled=False):
                yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
    else:
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(device_type, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(legacy)


def as_float32(values: Tensor, buffer: Tensor) -> Tensor:
    """The values themselves where they are float32, otherwise a copy in ``buffer``."""
    return values if values.dtype == torch.float32 else buffer.copy_(values)
