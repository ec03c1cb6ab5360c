"""A loaded video: features, positions and token ids as one object, never apart.

N tokens, S DeepStack layers, D channels, L columns of the prompt stretch, G tokens of the grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.store.head import Head
from schemas.grid import TokenGrid
from schemas.index import IndexRow
from schemas.manifest import Manifest

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class CachedVideo:
    """The tokens of one video at the budget they were loaded with, in prompt order.

    Attributes:
        row: the index row: path, duration, frames, decoder and all else that is known.
        manifest: what its cache was built with: encoder, sampling, fusion.
        features: ``(N, (1+S)*D)``; a row is ``[main | deepstack 0 | deepstack 1 | ...]``.
        coordinates: ``(N, 3)`` int32, (t, y, x) in the grid.
        score: ``(N,)`` float32, what the rows were ordered by.
        input_ids: ``(L,)`` int64: the video's stretch of the prompt: timestamps, markers, tokens.
        position_ids: ``(3, L)`` int32, those of the uncompressed prompt, from 0.
        visual_index: ``(N,)`` int64, columns of the stretch where the tokens stand, ascending.
        match: ``(G,)`` int32: the grid index of the token that stands for each token as the
            cache was built, -1 where none does.
        bytes_read: bytes that were read from the shard.
    """

    row: IndexRow
    manifest: Manifest
    features: torch.Tensor
    coordinates: torch.Tensor
    score: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visual_index: torch.Tensor
    match: torch.Tensor
    bytes_read: int

    def __repr__(self) -> str:
        return (
            f"CachedVideo({self.video_id!r}, grid={self.grid}, num_tokens={self.num_tokens}, "
            f"features={tuple(self.features.shape)} {self.features.dtype} on "
            f"{self.features.device}, num_deepstack={self.num_deepstack}, "
            f"stretch={self.input_ids.shape[0]}, next_position={self.next_position})"
        )

    @property
    def video_id(self) -> str:
        return self.row.video_id

    @property
    def key(self) -> str:
        """sha256 of content, fingerprint and decoder: equal keys mean equal stored features."""
        return str(self.row.key)

    @property
    def selection(self) -> str:
        """Key and number of tokens: equal selections of one cache mean equal tensors."""
        return f"{self.key}:{self.num_tokens}"

    @property
    def grid(self) -> TokenGrid:
        """The grid before fusion."""
        return self.row.grid

    @property
    def num_tokens(self) -> int:
        return self.features.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.row.hidden_size or 0

    @property
    def num_deepstack(self) -> int:
        return self.row.num_deepstack or 0

    @property
    def next_position(self) -> int:
        """The position of whatever follows the video when the stretch begins at 0."""
        return self.row.next_position or 0

    @property
    def embeddings(self) -> torch.Tensor:
        """``(N, D)`` view of the main features."""
        return self.features[:, : self.hidden_size]

    @property
    def deepstack(self) -> torch.Tensor:
        """``(S, N, D)`` view of the DeepStack features."""
        layers = self.features.view(self.num_tokens, 1 + self.num_deepstack, self.hidden_size)
        return layers[:, 1:].transpose(0, 1)

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> CachedVideo:
        """The same video with all tensors on ``device``; arguments as of ``torch.Tensor.to``."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
            if field.name not in ("row", "manifest", "bytes_read")
        }
        return dataclasses.replace(self, **moved)

    def prefill(
        self, tokenizer: Any, question: str, *, system: str | None = None
    ) -> Mapping[str, Any]:
        """The inputs of ``model.generate`` for a question about this video.

        Args:
            tokenizer: the model's.
            question: what is asked.
            system: a system message before the video.
        """
        from pipeline.prefill import build_prefill

        inputs: Mapping[str, Any] = build_prefill([self], tokenizer, question, system=system)
        return inputs


def assemble_video(
    row: IndexRow,
    manifest: Manifest,
    head: Head,
    features: torch.Tensor,
    order: NDArray[np.int64],
    *,
    bytes_read: int,
) -> CachedVideo:
    """Put a read video together: the stretch loses the columns of tokens that were not loaded.

    Args:
        row: its index row.
        manifest: of its cache.
        head: its small tensors, in storage order.
        features: ``(N, (1+S)*D)`` in prompt order.
        order: ``(N,)`` the storage row at each place of the prompt.
        bytes_read: bytes read from the shard.
    """
    import torch

    input_ids, position_ids = head.input_ids, head.position_ids
    visual_index = head.prompt_index[order].astype(np.int64)
    if len(order) < head.num_rows:
        stays = np.ones(len(input_ids), dtype=np.bool_)
        stays[head.prompt_index[len(order) :]] = False
        input_ids, position_ids = input_ids[stays], position_ids[:, stays]
        visual_index = (np.cumsum(stays) - 1)[visual_index]
    grid_index = head.grid_index[order]
    sides = (row.grid.frames, row.grid.height, row.grid.width)
    coordinates = np.stack(np.unravel_index(grid_index, sides), axis=1).astype(np.int32)
    return CachedVideo(
        row=row,
        manifest=manifest,
        features=features,
        coordinates=torch.from_numpy(coordinates),
        score=torch.from_numpy(head.score[order]),
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        position_ids=torch.from_numpy(position_ids.copy()),
        visual_index=torch.from_numpy(visual_index),
        match=torch.from_numpy(head.match.copy()),
        bytes_read=bytes_read,
    )
