"""What a training goes through, one stage after the other."""

from dataclasses import dataclass, replace

from examples.toyworld.losses import Weights


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training.

    Attributes:
        name: shown while it lasts.
        steps: how many.
        num_videos: of each step.
        rates: share of the highest learning rate at the first step and at the last.
        vision_rate: the tower's rate over the others'; 0: it rests.
        weights: of the loss at the first step and at the last.
        asks: whether questions are asked.
        least_kept: below 1 half of the lessons, by chance, keep only a share of the visual tokens
            between this and 1; which, is chance too.
    """

    name: str
    steps: int
    num_videos: int
    rates: tuple[float, float]
    vision_rate: float
    weights: tuple[Weights, Weights]
    asks: bool = True
    least_kept: float = 1.0


_LOOKING = Weights(label=1, picture=1), Weights(label=1, picture=1)
_READING = Weights(hint=1), Weights(hint=0.5)
_BOTH = Weights(hint=0.5, label=0.5, picture=0.5), Weights(label=0.2, picture=0.5)

STAGES = (
    Stage("look", 1800, 16, (1.0, 0.02), vision_rate=1.0, weights=_LOOKING, asks=False),
    Stage("read", 1800, 12, (1.0, 0.7), vision_rate=0.0, weights=_READING),
    Stage("both", 3600, 8, (0.7, 0.02), vision_rate=0.2, weights=_BOTH),
)
DROPPING_STAGES = (*STAGES[:-1], replace(STAGES[-1], least_kept=0.1))


def stages_of(*, drops_tokens: bool) -> tuple[Stage, ...]:
    """What a training goes through, of the shipped kind or of the one with token dropping."""
    return DROPPING_STAGES if drops_tokens else STAGES
