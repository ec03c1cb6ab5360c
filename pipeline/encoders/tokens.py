"""What an encoder returns for one video."""

from dataclasses import dataclass

from torch import Tensor

from schemas.errors import GridMismatchError
from schemas.grid import TokenGrid


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """All visual tokens of one video, row-major over ``grid``, before any fusion.

    ``embeddings`` is ``(N, D)``; ``deepstack`` is ``(S, N, D)``, one slice per DeepStack layer in
    the order in which the language model adds them (S may be 0).
    """

    embeddings: Tensor
    deepstack: Tensor
    grid: TokenGrid

    def __post_init__(self) -> None:
        self.grid.check(len(self.embeddings))
        if self.deepstack.ndim != 3 or self.deepstack.shape[1:] != self.embeddings.shape:
            raise GridMismatchError(
                f"DeepStack features of shape {tuple(self.deepstack.shape)} do not belong to "
                f"embeddings of shape {tuple(self.embeddings.shape)}: expected (layers, N, D)"
            )

    def __repr__(self) -> str:
        shapes = (
            f"embeddings={tuple(self.embeddings.shape)}, deepstack={tuple(self.deepstack.shape)}"
        )
        return f"VisualTokens({shapes}, grid={self.grid}, dtype={self.embeddings.dtype})"
