"""From the rows of a reader to features, whatever their encoding.

N rows, S DeepStack layers, D channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.store.memory import RowMemory, byte_view, rows_of, torch_dtype
from pipeline.store.reader import VideoReader
from schemas.errors import CacheCorruptError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def read_features(
    reader: VideoReader,
    num_rows: int,
    *,
    memory: RowMemory,
    out: torch.Tensor | None,
    device: str | torch.device,
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Read the first ``num_rows`` stored rows as features, in prompt order.

    Args:
        reader: of the video.
        num_rows: 1 to the number of stored rows.
        memory: gives the place of the features unless ``out`` does.
        out: a contiguous CPU tensor of at least N rows, or None.
        device: where the features will be used; codes of "fp8" travel to a CUDA device and are
            decoded there.

    Returns:
        ``(N, (1+S)*D)`` features, on CPU but for those decoded elsewhere, and ``(N,)`` int64: the
        storage row of each.

    Raises:
        ConfigError: an ``out`` that does not fit.
        CacheCorruptError: what is on disk is not what was committed.
    """
    if reader.row.encoding == "fp8":
        return _read_codes(reader, num_rows, memory, out, device)
    features = _place(reader, num_rows, memory, out, device)
    return features, reader.read_rows(num_rows, byte_view(features))


def _read_codes(
    reader: VideoReader,
    num_rows: int,
    memory: RowMemory,
    out: torch.Tensor | None,
    device: str | torch.device,
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    import torch

    from pipeline.store.fp8 import decode_fp8

    row, scale = reader.row, reader.head.scale
    assert scale is not None, "a layout of encoding fp8 has the tensor scale"
    if torch.device(device).type == "cuda" and out is None:
        dtype = torch_dtype(str(row.dtype))
        features = torch.empty(num_rows, row.row_width, dtype=dtype, device=device)
    else:
        features = _place(reader, num_rows, memory, out, device)
    codes = memory.empty_rows(num_rows, row.row_width, torch.uint8, device=device)
    order = reader.read_rows(num_rows, byte_view(codes))
    scales = torch.from_numpy(scale[order])
    try:
        decode_fp8(
            codes.to(features.device, non_blocking=True), scales.to(features.device), features
        )
    except CacheCorruptError as error:
        raise type(error)(f"video {row.video_id!r}: {error}") from error
    return features, order


def _place(
    reader: VideoReader,
    num_rows: int,
    memory: RowMemory,
    out: torch.Tensor | None,
    device: str | torch.device,
) -> torch.Tensor:
    dtype, width = torch_dtype(str(reader.row.dtype)), reader.row.row_width
    if out is None:
        return memory.empty_rows(num_rows, width, dtype, device=device)
    return rows_of(out, num_rows, width, dtype)
