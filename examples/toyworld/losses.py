"""What training minimises: wrong answers, wrong hints, tokens that do not show what they cover."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from examples.toyworld.forward import NO_TARGET
from examples.toyworld.labels import FRAMES_PER_TOKEN, GROUPS, NO_LABEL, TOKEN_SIDE
from examples.toyworld.lessons import Lesson
from examples.toyworld.scene import SIDE

POOL = 4
"""Pixels on each side that the picture to be drawn again is averaged over."""

PICTURE = (TOKEN_SIDE // POOL) ** 2 * FRAMES_PER_TOKEN * 3
"""Values that one token should let be read off."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each part counts; an answer counts 1, the end after it ``end``."""

    end: float = 0.05
    hint: float = 0.0
    label: float = 0.0
    picture: float = 0.0

    def towards(self, other: "Weights", share: float) -> "Weights":
        """A share of the way to others."""
        return Weights(
            *(
                getattr(self, part.name) * (1 - share) + getattr(other, part.name) * share
                for part in fields(self)
            )
        )


def answer_loss(logits: Tensor, lesson: Lesson, weights: Weights, end_id: int) -> Tensor:
    """Cross-entropy of answers, the ends of turns and hints; ``logits`` is ``(B, Q, A, V)``."""
    is_end = lesson.targets == end_id
    is_answer = (lesson.targets != NO_TARGET) & ~is_end
    loss = _cross_entropy(logits[is_answer], lesson.targets[is_answer])
    loss = loss + weights.end * _cross_entropy(logits[is_end], lesson.targets[is_end])
    is_hint = lesson.hints != NO_TARGET
    if weights.hint and is_hint.any():
        loss = loss + weights.hint * _cross_entropy(logits[is_hint], lesson.hints[is_hint])
    return loss


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets)


class TokenReader(nn.Module):
    """Reads labels and a coarse picture off visual tokens; thrown away after training.

    Labels are read by the words' own embeddings, so that a token comes to lie near the words it
    shows. Both look at directions only, as a fusion's cosine does.

    Args:
        tokenizer: of the checkpoint.
        width: D.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int) -> None:
        super().__init__()
        self.picture = nn.Linear(width, PICTURE)
        self._words = [
            torch.tensor(tokenizer(list(words), add_special_tokens=False)["input_ids"])[:, 0]
            for words in GROUPS.values()
        ]

    def forward(
        self, visual: Tensor, frames: Tensor, labels: Tensor, table: Tensor, weights: Weights
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the share of labels read rightly, ``(len(GROUPS),)``.

        Args:
            visual: ``(B, T*N, D)``.
            frames: ``(B, frames, SIDE, SIDE, 3)`` uint8.
            labels: ``(B, len(GROUPS), T, N)``.
            table: embeddings of words, ``(V, D)``.
            weights: of the parts.
        """
        directions = functional.rms_norm(visual, visual.shape[-1:])
        losses, shares = [], []
        for number, words in enumerate(self._words):
            label = labels[:, number].flatten(1)
            is_labelled = label != NO_LABEL
            logits = (directions[is_labelled] @ table[words].T).float()
            label = label[is_labelled]
            shares.append((logits.argmax(-1) == label).float().mean())
            if len(label):
                losses.append(functional.cross_entropy(logits, label))
        drawn = self.picture(directions.to(self.picture.weight.dtype)).float()
        loss = weights.picture * functional.mse_loss(drawn, pictures(frames))
        if losses:
            loss = loss + weights.label * torch.stack(losses).mean()
        return loss, torch.stack(shares).detach()


def pictures(frames: Tensor) -> Tensor:
    """Coarse pixels under each token, from -2 to 2, ``(B, T*N, PICTURE)``.

    Args:
        frames: ``(B, frames, SIDE, SIDE, 3)`` uint8.
    """
    planes = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2
    coarse = functional.avg_pool2d(planes, POOL)
    across, side = SIDE // TOKEN_SIDE, TOKEN_SIDE // POOL
    shape = (len(frames), -1, FRAMES_PER_TOKEN, 3, across, side, across, side)
    cells = coarse.reshape(shape).permute(0, 1, 4, 6, 2, 3, 5, 7)
    return cells.flatten(4).flatten(1, 3)
