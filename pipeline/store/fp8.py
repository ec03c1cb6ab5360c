"""Encoding "fp8" of feature rows, not exact: one byte per value, one scale per row and layer.

Dimension key: N stored rows, L = 1+S layers of D channels, C = L*D values per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from schemas.errors import BoundsError, CacheError, DtypeError, ShapeError

if TYPE_CHECKING:
    import torch

FP8_MAX = 448.0
"""The largest finite float8_e4m3fn number."""

MIN_SCALE = 2.0**-117
"""Least scale of a layer: a code times this is 0 or a normal float32, and x/scale is finite."""

_LARGEST = {"F32": 3.4028234663852886e38, "BF16": 3.3895313892515355e38, "F16": 65504.0}
"""The largest finite number of each type of features."""

_BLOCK_VALUES = {"cpu": 2**19, "other": 2**26}


def encode_fp8(features_NC: torch.Tensor, num_layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round features to float8_e4m3fn, with one scale per row and layer.

    ``scale = max(max|x| / 448, MIN_SCALE)`` and ``code = x / scale`` to the nearest, ties to even,
    both in float32. But for the last bits of these roundings, a number moves by 1/16 of itself at
    most, one below ``scale / 64`` by ``scale / 1024``. Features decoded to their own dtype have
    the same codes again; float16 numbers below 2^-20 may be one code off.

    Args:
        features_NC: ``(N, L*D)`` bfloat16, float16 or float32, finite, on any device.
        num_layers: L.

    Returns:
        ``(N, L*D)`` uint8 codes and ``(N, L)`` float32 scales, on the same device.

    Raises:
        DtypeError: features of another type.
        ShapeError: rows that do not consist of ``num_layers`` equal parts.
        CacheError: features that are not finite.
    """
    import torch

    _require_features("features", features_NC, num_layers)
    features_NC = features_NC.detach().contiguous()
    num_rows, width = features_NC.shape
    codes_NC = torch.empty_like(features_NC, dtype=torch.uint8)
    scale_NL = features_NC.new_empty((num_rows, num_layers), dtype=torch.float32)
    step = _block_rows(features_NC)
    for first in range(0, num_rows, step):
        block = slice(first, first + step)
        values_NLD = features_NC[block].float().view(-1, num_layers, width // num_layers)
        scale = (values_NLD.abs().amax(dim=-1) / FP8_MAX).clamp_(min=MIN_SCALE)
        codes = (values_NLD / scale[..., None]).to(torch.float8_e4m3fn)
        codes_NC[block] = codes.view(torch.uint8).view(-1, width)
        scale_NL[block] = scale
    finite = scale_NL.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise CacheError(
            f"feature row {row} holds NaN or infinity; nothing was encoded. "
            "Encode with dtype bfloat16 or float32, or look at this video's frames."
        )
    return codes_NC, scale_NL


def decode_fp8(codes_NC: torch.Tensor, scale_NL: torch.Tensor, out_NC: torch.Tensor) -> None:
    """Write ``code * scale``, rounded to float32 and then to the dtype of ``out_NC``.

    A code's bits, moved up, are those of a float16 that is 2^-8 of its value, exactly; on a
    processor that is faster than a cast or a table. The codes of NaN, which ``encode_fp8`` never
    gives, are read as 480.

    Args:
        codes_NC: ``(N, L*D)`` uint8.
        scale_NL: ``(N, L)`` float32.
        out_NC: ``(N, L*D)`` bfloat16, float16 or float32, on the device of the codes.

    Raises:
        DtypeError: tensors of other types.
        ShapeError: shapes that contradict each other.
        BoundsError: a scale that features of this dtype cannot have.
    """
    import torch

    _require_codes(codes_NC, scale_NL, out_NC)
    _require_scale(scale_NL, out_NC.dtype)
    num_rows, width = codes_NC.shape
    num_layers = scale_NL.shape[1]
    factor_NL = scale_NL * 2.0**8
    step = _block_rows(codes_NC)
    for first in range(0, num_rows, step):
        block = slice(first, first + step)
        bits = codes_NC[block].view(torch.int8).to(torch.int16)  # the sign fills the upper byte
        bits <<= 7
        bits &= ~0x4000  # the sign once more, where float16 has its highest exponent bit
        values_NLD = bits.view(torch.float16).float().reshape(-1, num_layers, width // num_layers)
        values_NLD *= factor_NL[block][..., None]
        out_NC[block] = values_NLD.view(-1, width)


def _block_rows(rows: torch.Tensor) -> int:
    """Rows whose float32 values fit the processor's cache, or a modest part of a device."""
    values = _BLOCK_VALUES.get(rows.device.type, _BLOCK_VALUES["other"])
    return max(1, values // rows.shape[1])


def _require_features(name: str, tensor: torch.Tensor, num_layers: int) -> None:
    from pipeline.dtypes import STORAGE_DTYPES

    if tensor.dtype not in STORAGE_DTYPES:
        raise DtypeError(f"{name} are {tensor.dtype}; format 1 stores {list(STORAGE_DTYPES)}")
    if tensor.ndim != 2 or 0 in tensor.shape or num_layers < 1 or tensor.shape[1] % num_layers:
        raise ShapeError(
            f"{name} have shape {tuple(tensor.shape)}, expected (N, L*D) with L = {num_layers}"
        )


def _require_codes(codes_NC: torch.Tensor, scale_NL: torch.Tensor, out_NC: torch.Tensor) -> None:
    import torch

    if codes_NC.dtype != torch.uint8 or scale_NL.dtype != torch.float32:
        raise DtypeError(
            f"codes are {codes_NC.dtype}, scales {scale_NL.dtype}; expected uint8 and float32"
        )
    if scale_NL.ndim != 2 or codes_NC.shape != out_NC.shape or len(scale_NL) != len(codes_NC):
        raise ShapeError(
            f"codes {tuple(codes_NC.shape)}, scales {tuple(scale_NL.shape)} and out "
            f"{tuple(out_NC.shape)}; expected (N, L*D), (N, L) and (N, L*D)"
        )
    _require_features("decoded features", out_NC, scale_NL.shape[1])


def _require_scale(scale_NL: torch.Tensor, dtype: torch.dtype) -> None:
    import torch

    largest = float(torch.tensor(torch.finfo(dtype).max, dtype=torch.float32) / FP8_MAX)
    _require_range(float(scale_NL.min()), float(scale_NL.max()), largest, str(dtype))


def check_scale(scale_NL: npt.NDArray[np.float32], dtype: str) -> None:
    """Raise BoundsError unless features of a safetensors type can have these scales; no torch."""
    largest = float(np.float32(_LARGEST[dtype]) / np.float32(FP8_MAX))
    _require_range(float(scale_NL.min()), float(scale_NL.max()), largest, dtype)


def _require_range(least: float, most: float, largest: float, dtype: str) -> None:
    if not MIN_SCALE <= least <= most <= largest:
        raise BoundsError(
            f"scales are {least:g} to {most:g}; those of {dtype} features are {MIN_SCALE:g} to "
            f"{largest:g}. They are damaged, or of features of another type."
        )
