"""What a fusion method decided: which tokens stay, what stands for the others, in which order.

Dimension key: G tokens of the grid, K kept tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.fusion.averages import weighted_means
from schemas.errors import FusionError, GridMismatchError
from schemas.grid import TokenGrid

_WEIGHT_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FusionPlan:
    """The decision about one video's tokens; applying it is indexing, or a mean.

    All tensors lie on one device, that of the tokens the plan was made from. A token that is not
    kept is fused: another token, its match, stands for it. Where a method drops, the row of a kept
    token is its own, unchanged; where it averages, the row is the mean of all it stands for.

    Attributes:
        method: name in ``schemas.fusion.METHODS``.
        grid: the grid of all G tokens.
        keep_index: ``(K,)`` int64, grid indices of the kept tokens, ascending.
        match_index: ``(G,)`` int64, for every token the grid index of the kept token that stands
            for it; a kept token stands for itself.
        weight: ``(G,)`` float32, the share with which each token enters the row of its match; the
            shares of one row add up to 1. None: rows are copies.
        score: ``(K,)`` float32, in the order of ``keep_index``; its meaning is the method's. TTF:
            the best cosine to the anchor, -inf for the anchor's own tokens.
        storage_order: ``(K,)`` int64, a permutation: row i of the stored features is token
            ``keep_index[storage_order[i]]``.
        nested: any prefix of the storage order is a valid smaller budget.
        anchor_frame: the one token frame whose tokens stand for others; None without one.

    Raises:
        FusionError: tensors that contradict each other.
        GridMismatchError: ``match_index`` or ``weight`` does not cover the grid.
    """

    method: str
    grid: TokenGrid
    keep_index: Tensor
    match_index: Tensor
    score: Tensor
    storage_order: Tensor
    nested: bool
    anchor_frame: int | None = None
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()
        if self.weight is not None:
            self._check_weights(self.weight)

    def _check_shapes(self) -> None:
        kept = tuple(self.keep_index.shape)
        every = (self.grid.num_tokens,)
        expected = {
            "keep_index": (torch.int64, (self.num_kept,)),
            "match_index": (torch.int64, every),
            "score": (torch.float32, kept),
            "storage_order": (torch.int64, kept),
        }
        if self.weight is not None:
            expected["weight"] = (torch.float32, every)
        for name, (dtype, shape) in expected.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                kind = GridMismatchError if shape is every else FusionError
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
        order = self.storage_order
        is_inside = ((order >= 0) & (order < self.num_kept)).all()
        is_taken = torch.zeros(self.num_kept, dtype=torch.bool, device=kept.device)
        is_taken[order if is_inside else order[:0]] = True
        self._require(is_taken.all(), "storage_order is a permutation")
        is_kept = torch.zeros(total, dtype=torch.bool, device=kept.device)
        is_kept[kept] = True
        self._require(is_kept[match].all(), "every match is kept")
        self._require((match[kept] == kept).all(), "a kept token stands for itself")

    def _check_weights(self, weight: Tensor) -> None:
        self._require((weight >= 0).all(), "no weight is negative")
        sums = torch.zeros(self.grid.num_tokens, dtype=torch.float64, device=weight.device)
        sums.index_add_(0, self.match_index, weight.double())
        error = (sums[self.keep_index] - 1).abs().max()
        self._require(error <= _WEIGHT_ROUNDING, "the weights of a row add up to 1")

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
                layer, pictures. On any device. Where the method averages, means are taken in
                float64 and rounded once to the type of ``tokens``.

        Returns:
            ``(K, ...)``, a copy.

        Raises:
            GridMismatchError: another number of rows.
        """
        self.grid.check(tokens.shape[0] if tokens.ndim else 0)
        rows = self.storage_index.to(tokens.device)
        if self.weight is None:
            return tokens.index_select(0, rows)
        match, weight = self.match_index.to(tokens.device), self.weight.to(tokens.device)
        return weighted_means(tokens, match, weight, rows)

    def __repr__(self) -> str:
        return (
            f"FusionPlan(method={self.method!r}, grid={self.grid}, kept={self.num_kept}, "
            f"keep_ratio={self.keep_ratio:.3f}, anchor_frame={self.anchor_frame}, "
            f"nested={self.nested}, averages={self.weight is not None})"
        )
