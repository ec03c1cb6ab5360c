"""What each fusion method can do, for ``--help`` and for refusals. Nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class FusionMethod:
    """The capabilities of one method.

    Attributes:
        name: as in ``FusionConfig.method``.
        summary: one line for ``--help``.
        nested: the stored order is progressive; a loader may take any prefix of it.
        budgeted: keeps an exact number of tokens when asked.
        uses_threshold: ``FusionConfig.threshold`` decides, as long as no budget is given.
    """

    name: str
    summary: str
    nested: bool
    budgeted: bool
    uses_threshold: bool = False


METHODS: Mapping[str, FusionMethod] = MappingProxyType(
    {
        method.name: method
        for method in (
            FusionMethod(
                "ttf",
                "fuse tokens into near-equal ones of a single anchor frame (default)",
                nested=True,
                budgeted=True,
                uses_threshold=True,
            ),
            FusionMethod("none", "keep every token", nested=False, budgeted=False),
            FusionMethod(
                "uniform",
                "keep whole token frames, evenly spaced (a third of the tokens by default)",
                nested=False,
                budgeted=True,
            ),
            FusionMethod(
                "random",
                "keep tokens drawn at random (a third of the tokens by default)",
                nested=True,
                budgeted=True,
            ),
        )
    }
)
"""Every method by name, the default first."""
