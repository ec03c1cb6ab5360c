"""The fusion methods, what each can do, and how one is asked for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from schemas.checks import make_floats, plain_number, require

FUSION_ORDERS = ("chronological", "anchor_first")

LARGEST_BUDGET = 2**31 - 1
"""In tokens: places in a grid are stored in 32 bits."""

_WHOLE = 1e-9
"""0.29 of 100 tokens are 29, although the product of the binary fraction is a little less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionMethod:
    """What one method does, and what can be asked of it.

    Attributes:
        name: as in ``FusionConfig.method``.
        summary: one line for people.
        source: where the formulas come from.
        averages: a kept row is the mean of the tokens it stands for; otherwise rows are copies.
        uses_threshold: ``FusionConfig.threshold`` decides, as long as no budget is given.
        budgeted: keeps an exact number of tokens when asked.
        nested: the stored order is progressive; a loader may take any prefix of it. One that holds
            all rows of score -inf, which the method always keeps, is what a build with that budget
            keeps.
        bounded: every fused token has a cosine above the threshold with the token that stands for
            it; with a budget, above the threshold at which that budget is reached.
        streaming: at a threshold, or at its fixed share, decides about a token frame from at most
            three frames before it and what it kept; no later frame matters.
        threshold: the default of ``FusionConfig.threshold``.
        spatial_threshold: the default of ``FusionConfig.spatial_threshold``; None: not used.
        budget: the share of the tokens that is kept when none is asked; None: the threshold
            decides, or the method fixes its share itself.
        uses_window: ``FusionConfig.window`` matters.
        anchored: has one anchor frame, which ``FusionConfig.order`` may place first.
    """

    name: str
    summary: str
    source: str = "-"
    averages: bool = False
    uses_threshold: bool = False
    budgeted: bool = True
    nested: bool = False
    bounded: bool = False
    streaming: bool = False
    threshold: float = 0.70
    spatial_threshold: float | None = None
    budget: float | None = None
    uses_window: bool = False
    anchored: bool = False


METHODS: Mapping[str, FusionMethod] = MappingProxyType(
    {
        method.name: method
        for method in (
            FusionMethod(
                name="ttf",
                summary="fuse tokens into near-equal ones of a single anchor frame",
                source="arXiv 2605.07355",
                uses_threshold=True,
                nested=True,
                bounded=True,
                uses_window=True,
                anchored=True,
            ),
            FusionMethod(
                name="ttf-shots",
                summary="ttf with an anchor frame for each shot",
                source="docs/fusion.md",
                uses_threshold=True,
                nested=True,
                bounded=True,
                uses_window=True,
            ),
            FusionMethod(
                name="ttf-closed",
                summary="fuse tokens into near-equal ones among those kept so far",
                source="docs/fusion.md",
                uses_threshold=True,
                bounded=True,
                streaming=True,
                uses_window=True,
            ),
            FusionMethod(
                name="framefusion",
                summary="average runs of tokens that resemble the frame before (first step only)",
                source="arXiv 2501.01986",
                averages=True,
                uses_threshold=True,
                streaming=True,
                threshold=0.60,
            ),
            FusionMethod(
                name="sttm",
                summary="average blocks of a quadtree, then blocks that resemble the frame before",
                source="arXiv 2507.07990",
                averages=True,
                uses_threshold=True,
                streaming=True,
                threshold=0.60,
                spatial_threshold=0.85,
            ),
            FusionMethod(
                name="evs",
                summary="keep the tokens that differ most from the frame before",
                source="arXiv 2510.14624",
                nested=True,
                budget=0.30,
            ),
            FusionMethod(
                name="vidcom2",
                summary="keep the tokens least alike their frame and video",
                source="arXiv 2505.14454",
                budget=0.25,
            ),
            FusionMethod(
                name="dycoke",
                summary="keep 30 % of three frames in four, those that differ most from a partner",
                source="arXiv 2411.15024",
                nested=True,
                streaming=True,
            ),
            FusionMethod(
                name="tome",
                summary="average the most alike pairs of tokens, again and again",
                source="arXiv 2210.09461",
                averages=True,
                budget=0.30,
            ),
            FusionMethod(
                name="uniform",
                summary="keep whole token frames, evenly spaced",
                budget=1 / 3,
            ),
            FusionMethod(
                name="random",
                summary="keep tokens drawn at random",
                nested=True,
                budget=1 / 3,
            ),
            FusionMethod(
                name="none",
                summary="keep every token",
                budgeted=False,
                bounded=True,
                streaming=True,
            ),
        )
    }
)
"""Every method by name, the default first."""


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """How redundant tokens are fused.

    ``threshold``: a token is fused when its best cosine is greater; None is the method's own.
    ``window``: side of the square searched in an anchor. ``budget``: exact number of tokens kept,
    an int, or a fraction of the video's visual tokens, a float in (0, 1]. ``seed`` is used by
    "random" only. ``spatial_threshold`` is used by "sttm" only, within a frame; None is its own.
    """

    method: str = "ttf"
    threshold: float | None = None
    window: int = 3
    budget: float | int | None = None
    order: str = "chronological"
    seed: int = 0
    spatial_threshold: float | None = None

    def __post_init__(self) -> None:
        make_floats(self, "threshold", "spatial_threshold")
        for name in ("budget", "window", "seed"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        require(self.method in METHODS, "fusion.method", self.method, f"one of {tuple(METHODS)}")
        for name in ("threshold", "spatial_threshold"):
            value = getattr(self, name)
            fits = value is None or (type(value) is float and -1 < value <= 1)
            require(fits, f"fusion.{name}", value, "a number in (-1, 1]")
        spatial = self.spatial_threshold
        is_used = spatial is None or self.abilities.spatial_threshold is not None
        require(is_used, "fusion.spatial_threshold", spatial, "method 'sttm' with it")
        fits = type(self.window) is int and self.window in (1, 3, 5, 7)
        require(fits, "fusion.window", self.window, "1, 3, 5 or 7")
        require(self.order in FUSION_ORDERS, "fusion.order", self.order, f"one of {FUSION_ORDERS}")
        fits = type(self.seed) is int and 0 <= self.seed < 2**63
        require(fits, "fusion.seed", self.seed, "a whole number in [0, 2**63)")
        if self.budget is not None:
            check_budget(self.budget, "fusion.budget")

    @property
    def abilities(self) -> FusionMethod:
        """What the method can do."""
        return METHODS[self.method]

    @property
    def fuses_above(self) -> float:
        """The threshold in use."""
        return self.abilities.threshold if self.threshold is None else self.threshold

    def settled(self) -> Self:
        """The same with the method's own thresholds written out."""
        spatial = self.spatial_threshold
        return dataclasses.replace(
            self,
            threshold=self.fuses_above,
            spatial_threshold=self.abilities.spatial_threshold if spatial is None else spatial,
        )

    def identity(self) -> dict[str, Any]:
        """The settings a cache is told apart by.

        ``spatial_threshold`` is younger than format 1 and is left out where it is not set, so that
        older caches keep their fingerprint.
        """
        values = dataclasses.asdict(self)
        if values["spatial_threshold"] is None:
            del values["spatial_threshold"]
        return values

    def __str__(self) -> str:
        """The method and what decided, for people."""
        method = self.abilities
        if self.budget is not None:
            return f"{self.method}, budget {self.budget}"
        if not method.uses_threshold:
            return self.method
        text = f"{self.method}, threshold {self.fuses_above:g}"
        spatial = self.settled().spatial_threshold
        text += "" if spatial is None else f", spatial threshold {spatial:g}"
        return text + (f", window {self.window}" if method.uses_window else "")

    def num_kept(self, num_tokens: int) -> int:
        """Tokens to keep of ``num_tokens``: the budget, or the share the method has by default.

        All of them where there is neither.
        """
        budget = self.abilities.budget if self.budget is None else self.budget
        return num_tokens if budget is None else budget_tokens(budget, num_tokens)


def check_budget(budget: float | int, where: str = "budget") -> None:
    """Raise ConfigError unless ``budget`` is a whole number >= 1 or a float in (0, 1]."""
    is_number = type(budget) in (int, float)
    require(is_number, where, budget, "a whole number of tokens or a fraction in (0, 1]")
    if isinstance(budget, float):
        require(0 < budget <= 1, where, budget, "a fraction in (0, 1] or a whole number of tokens")
    else:
        fits = 1 <= budget <= LARGEST_BUDGET
        require(fits, where, budget, f"1 to {LARGEST_BUDGET} tokens, or a fraction in (0, 1]")


def budget_tokens(budget: float | int, num_tokens: int) -> int:
    """Tokens that ``budget`` grants a video of ``num_tokens``: at least 1, never more than all."""
    budget = plain_number(budget)
    check_budget(budget)
    granted = int(budget * num_tokens + _WHOLE) if isinstance(budget, float) else budget
    return max(1, min(granted, num_tokens))
