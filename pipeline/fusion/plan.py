"""What a fusion method decided: which tokens stay, what stands for the others, in which order.

Dimension key: G tokens of the grid, K kept tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.errors import FusionError, GridMismatchError
from schemas.grid import TokenGrid


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FusionPlan:
    """The decision about one video's tokens; applying it is indexing.

    All tensors lie on one device, that of the tokens the plan was made from. A token that is not
    kept is fused: another token, its match, stands for it unchanged. Nothing is averaged.

    Attributes:
        method: name in ``pipeline.fusion.METHODS``.
        grid: the grid of all G tokens.
        keep_index: ``(K,)`` int64, grid indices of the kept tokens, ascending.
        match_index: ``(G,)`` int64, for every token the grid index of the kept token that stands
            for it; a kept token stands for itself.
        score: ``(K,)`` float32, in the order of ``keep_index``. TTF: the best cosine to the
            anchor, -inf for the anchor's own tokens. random: place in the draw, in [0, 1).
            Otherwise 0.
        storage_order: ``(K,)`` int64, a permutation: row i of the stored features is token
            ``keep_index[storage_order[i]]``.
        nested: any prefix of the storage order is a valid smaller budget.
        anchor_frame: the token frame whose tokens stand for others; None without one.

    Raises:
        FusionError: tensors that contradict each other.
        GridMismatchError: ``match_index`` does not cover the grid.
    """

    method: str
    grid: TokenGrid
    keep_index: Tensor
    match_index: Tensor
    score: Tensor
    storage_order: Tensor
    nested: bool
    anchor_frame: int | None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        kept = tuple(self.keep_index.shape)
        expected = {
            "keep_index": (torch.int64, (self.num_kept,)),
            "match_index": (torch.int64, (self.grid.num_tokens,)),
            "score": (torch.float32, kept),
            "storage_order": (torch.int64, kept),
        }
        for name, (dtype, shape) in expected.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                kind = GridMismatchError if name == "match_index" else FusionError
                raise kind(
                    f"{self.method} plan on grid {self.grid}: {name} is {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}, expected {dtype} of shape {shape}"
                )
        if self.anchor_frame is not None and not 0 <= self.anchor_frame < self.grid.frames:
            raise FusionError(
                f"{self.method} plan on grid {self.grid}: anchor frame {self.anchor_frame} is "
                f"outside the {self.grid.frames} token frames"
            )

    def _check_values(self) -> None:
        total, kept, match = self.grid.num_tokens, self.keep_index, self.match_index
        self._require(self.num_kept > 0, "at least one token is kept")
        self._require((kept.diff() > 0).all(), "keep_index ascends")
        self._require((kept >= 0).all() & (kept < total).all(), "keep_index is in the grid")
        self._require((match >= 0).all() & (match < total).all(), "match_index is in the grid")
        self._require(~self.score.isnan().any(), "no score is NaN")
        places = torch.arange(self.num_kept, device=kept.device)
        self._require(
            (self.storage_order.sort().values == places).all(), "storage_order is a permutation"
        )
        is_kept = torch.zeros(total, dtype=torch.bool, device=kept.device)
        is_kept[kept] = True
        self._require(is_kept[match].all(), "every match is kept")
        self._require((match[kept] == kept).all(), "a kept token stands for itself")

    def _require(self, holds: Tensor | bool, law: str) -> None:
        if not holds:
            raise FusionError(f"{self.method} plan on grid {self.grid} breaks the law: {law}")

    @property
    def num_kept(self) -> int:
        return self.keep_index.numel()

    @property
    def keep_ratio(self) -> float:
        """Kept tokens / all tokens, in (0, 1]."""
        return self.num_kept / self.grid.num_tokens

    @property
    def storage_index(self) -> Tensor:
        """``(K,)`` int64 grid indices of the kept tokens, in the order they are stored."""
        return self.keep_index[self.storage_order]

    def apply(self, tokens: Tensor) -> Tensor:
        """Rows of the kept tokens in storage order.

        Args:
            tokens: ``(G, ...)`` anything that has one row per token: embeddings, a DeepStack
                layer, coordinates, pictures. On any device.

        Returns:
            ``(K, ...)``, a copy.

        Raises:
            GridMismatchError: another number of rows.
        """
        self.grid.check(tokens.shape[0] if tokens.ndim else 0)
        return tokens.index_select(0, self.storage_index.to(tokens.device))

    def __repr__(self) -> str:
        return (
            f"FusionPlan(method={self.method!r}, grid={self.grid}, kept={self.num_kept}, "
            f"keep_ratio={self.keep_ratio:.3f}, anchor_frame={self.anchor_frame}, "
            f"nested={self.nested})"
        )
