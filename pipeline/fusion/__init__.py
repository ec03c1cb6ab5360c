"""Token fusion: decide which visual tokens of a video are kept, and what stands for the others.

Importing this package does not import torch; planning does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from schemas.errors import FusionError, GridMismatchError
from schemas.fusion import METHODS, FusionConfig, FusionMethod
from schemas.grid import TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.fusion.plan import FusionPlan

Planner: TypeAlias = Callable[["Tensor", TokenGrid, FusionConfig], "FusionPlan"]

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
        FusionError: tokens that are not finite or not floating, or a budget or an order that the
            method cannot keep.
    """
    from pipeline.fusion import (
        baselines,
        closed_loop,
        dycoke,
        evs,
        framefusion,
        shots,
        sttm,
        tome,
        ttf,
        vidcom2,
    )

    planners: dict[str, Planner] = {
        "ttf": ttf.plan_ttf,
        "ttf-shots": shots.plan_ttf_shots,
        "ttf-closed": closed_loop.plan_ttf_closed,
        "framefusion": framefusion.plan_framefusion,
        "sttm": sttm.plan_sttm,
        "evs": evs.plan_evs,
        "vidcom2": vidcom2.plan_vidcom2,
        "dycoke": dycoke.plan_dycoke,
        "tome": tome.plan_tome,
        "uniform": baselines.plan_uniform,
        "random": baselines.plan_random,
        "none": baselines.plan_none,
    }
    _check_possible(config)
    _check_tokens(tokens, grid)
    return planners[config.method](tokens.detach().contiguous(), grid, config)


def check_settings(config: FusionConfig) -> None:
    """Raise FusionError when a method is asked for what it never can do, whatever the video.

    Args:
        config: as a person gave it, not yet settled.
    """
    _check_possible(config)
    if config.threshold is not None and not config.abilities.uses_threshold:
        able = ", ".join(each.name for each in METHODS.values() if each.uses_threshold)
        raise FusionError(
            f"fusion method {config.method!r} has no use for a threshold, and "
            f"{config.threshold!r} was given. Leave it out, or choose one of: {able}."
        )


def _check_possible(config: FusionConfig) -> None:
    method = config.abilities
    if config.budget is not None and not method.budgeted:
        able = ", ".join(each.name for each in METHODS.values() if each.budgeted)
        raise FusionError(
            f"fusion method {config.method!r} cannot keep a budget, and budget={config.budget!r} "
            f"was asked of it. Leave the budget out, or choose one of: {able}."
        )
    if config.order == "anchor_first" and not method.anchored:
        able = ", ".join(each.name for each in METHODS.values() if each.anchored)
        raise FusionError(
            f"fusion method {config.method!r} has no single anchor frame that could come first. "
            f"Leave fusion.order at 'chronological', or choose: {able}."
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
