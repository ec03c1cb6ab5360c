"""The forms in which sums and matches are computed: the same decisions, at different speed.

A form is taken where its library is installed: nothing is asked of the user, and a token changes
sides only if its cosine is within 2e-6 of the threshold (docs/decisions/fusion.md).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Protocol

from torch import Tensor

from pipeline.fusion import window
from schemas.grid import TokenGrid


class MatchPlane(Protocol):
    """As ``pipeline.fusion.window.match_plane``."""

    def __call__(
        self, tokens: Tensor, plane_ND: Tensor, grid: TokenGrid, *, window: int
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compute what TTF decides from.

    Attributes:
        name: for people.
        frame_sums: as ``pipeline.fusion.window.frame_sums``.
        match_plane: as ``pipeline.fusion.window.match_plane``.
        reads: whether it can be given these tokens.
    """

    name: str
    frame_sums: Callable[[Tensor, TokenGrid], Tensor]
    match_plane: MatchPlane
    reads: Callable[[Tensor], bool]


_LIBRARIES = {"cpu": "numba", "cuda": "triton"}

TORCH = Form("torch", window.frame_sums, window.match_plane, lambda tokens: True)


def form_for(tokens: Tensor) -> Form:
    """The fastest form that is installed and can be given these tokens."""
    library = _LIBRARIES.get(tokens.device.type)
    form = compiled_form(library) if library else None
    return form if form and form.reads(tokens) else TORCH


@cache
def compiled_form(name: str) -> Form | None:
    """The form of a library, None where it is not installed; warns where it is there and broken.

    Args:
        name: "triton" or "numba".
    """
    try:
        module = import_module(f"pipeline.fusion.window_{name}")
    except ModuleNotFoundError:
        return None
    except Exception as error:  # whatever a half-installed library fails with
        warn_of_torch(name, error)
        return None
    return Form(name, module.frame_sums, module.match_plane, module.reads)


def warn_of_torch(name: str, error: Exception, *, advice: str = "") -> None:
    """Say that a library is there and cannot be used; nothing but time is lost."""
    warnings.warn(
        f"{name} cannot be used ({type(error).__name__}: {error}). Fusion takes the slower torch "
        "form; its decisions are the same. " + advice,
        RuntimeWarning,
        stacklevel=2,
    )
