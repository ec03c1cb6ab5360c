"""Budgets that a method cannot keep."""

from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid


def require_a_frame(config: FusionConfig, grid: TokenGrid) -> None:
    """Raise FusionError when a budget does not hold one whole token frame."""
    num_kept = config.num_kept(grid.num_tokens)
    if num_kept < grid.tokens_per_frame:
        raise FusionError(
            f"fusion method {config.method!r} keeps all {grid.tokens_per_frame} tokens of one "
            f"frame at least, and budget={config.budget!r} grants this video of {grid} tokens only "
            f"{num_kept}. Ask for at least {grid.tokens_per_frame} tokens, or choose 'random' or "
            "'uniform'."
        )
