"""Token fusion: decide which visual tokens of a video are kept, and what stands for the others.

Importing this package does not import torch; planning does.
"""

from typing import TYPE_CHECKING

from pipeline.fusion.methods import METHODS, FusionMethod
from schemas.config import FusionConfig
from schemas.errors import FusionError, GridMismatchError
from schemas.grid import TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.fusion.plan import FusionPlan

__all__ = ["METHODS", "FusionMethod", "check_settings", "plan_fusion"]


def plan_fusion(tokens: "Tensor", grid: TokenGrid, config: FusionConfig) -> "FusionPlan":
    """Decide which tokens of one video are kept.

    Equal bytes give equal plans. Decisions are made in float32 whatever the storage type.

    Args:
        tokens: ``(T*H*W, D)`` floating, row-major in t, y, x; any device; not modified.
        grid: the grid of these tokens.
        config: method and its settings.

    Returns:
        A plan on the device of ``tokens``.

    Raises:
        GridMismatchError: ``tokens`` is not one row per token of the grid.
        FusionError: tokens that are not finite or not floating, a budget the method cannot keep,
            or a method without a planner.
    """
    from pipeline.fusion import baselines, ttf

    planners = {
        "ttf": ttf.plan_ttf,
        "none": baselines.plan_none,
        "uniform": baselines.plan_uniform,
        "random": baselines.plan_random,
    }
    if config.method not in planners:
        raise FusionError(f"fusion method {config.method!r} is not one of {sorted(planners)}")
    check_settings(config)
    _check_tokens(tokens, grid)
    return planners[config.method](tokens.detach(), grid, config)


def check_settings(config: FusionConfig) -> None:
    """Raise FusionError when a method is asked for what it never can do, whatever the video."""
    if config.budget is not None and not METHODS[config.method].budgeted:
        able = ", ".join(name for name, method in METHODS.items() if method.budgeted)
        raise FusionError(
            f"fusion method {config.method!r} cannot keep a budget, and budget={config.budget!r} "
            f"was asked of it. Leave the budget out, or choose one of: {able}."
        )


def _check_tokens(tokens: "Tensor", grid: TokenGrid) -> None:
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise GridMismatchError(
            f"tokens have shape {tuple(tokens.shape)}, expected ({grid.num_tokens}, D): one row of "
            f"D >= 1 channels for each token of the grid {grid}"
        )
    grid.check(tokens.shape[0])
    if not tokens.is_floating_point():
        raise FusionError(f"tokens are {tokens.dtype}, expected a floating type such as bfloat16")
