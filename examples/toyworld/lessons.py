"""Batches to learn from: frames, labels of tokens, and questions with all answers alike often.

Batch ``n`` of a seed is always the same, so that a training that was stopped goes on as if it had
not been.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from examples.toyworld.draw import draw_scene
from examples.toyworld.forward import NO_TARGET, pack
from examples.toyworld.labels import token_labels
from examples.toyworld.questions import Question, ask
from examples.toyworld.render import render
from examples.toyworld.scene import FIRST_SEEDS, Scene

NUM_QUESTIONS = 12
"""Asked about each video of a lesson."""

QUESTION_LENGTH = 16
"""Columns of a question with its answer; the longest takes all."""

COUNTED_SCENES = 1000

SEEDS_OF_A_TRAINING, SEEDS_OF_A_LESSON = 1_000_000, 16
"""Scenes kept for one training, and for one lesson of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Some videos with their questions.

    Attributes:
        frames: ``(B, NUM_FRAMES, SIDE, SIDE, 3)`` uint8.
        labels: ``(B, len(GROUPS), T, N)`` int64.
        input_ids: ``(B, Q, A)`` int64.
        targets: ``(B, Q, A)`` int64: answers and the ends after them.
        hints: ``(B, Q, A)`` int64: at a word that names a thing, what else the thing is.
        kinds: kind of each question, B rows of Q.
    """

    frames: Tensor
    labels: Tensor
    input_ids: Tensor
    targets: Tensor
    hints: Tensor
    kinds: list[list[str]]


def make_lesson(
    scenes: Sequence[Scene],
    questions: Sequence[Sequence[Question]],
    tokenizer: PreTrainedTokenizerBase,
) -> Lesson:
    """Render scenes and pack as many questions about each."""
    pairs = [[(question.text, question.answer) for question in row] for row in questions]
    packed = pack(tokenizer, pairs, length=QUESTION_LENGTH)
    return Lesson(
        frames=torch.stack([torch.from_numpy(render(scene)) for scene in scenes]),
        labels=torch.stack([torch.from_numpy(token_labels(scene)) for scene in scenes]),
        input_ids=packed.input_ids,
        targets=packed.targets,
        hints=_hint_targets(packed.input_ids, questions, tokenizer),
        kinds=[[question.kind for question in row] for row in questions],
    )


def _hint_targets(
    input_ids: Tensor, questions: Sequence[Sequence[Question]], tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    targets = torch.full_like(input_ids, NO_TARGET)
    for b, row in enumerate(questions):
        for q, question in enumerate(row):
            for named, other in question.hints:
                word, target = _token(tokenizer, f" {named}"), _token(tokenizer, other)
                column = int((input_ids[b, q] == word).nonzero()[0])
                targets[b, q, column] = target
    return targets


def _token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    [token] = tokenizer(word, add_special_tokens=False)["input_ids"]
    return int(token)


@cache
def answer_counts() -> Mapping[tuple[str, str], int]:
    """How often each kind has each answer in ``COUNTED_SCENES`` scenes."""
    first = FIRST_SEEDS["train"]
    scenes = (draw_scene(first + number) for number in range(COUNTED_SCENES))
    return Counter((asked.kind, asked.answer) for scene in scenes for asked in ask(scene))


def choose_questions(scene: Scene, count: int) -> list[Question]:
    """Questions about a scene; the rarer a kind's answer, the sooner it is chosen.

    Where a scene has fewer, some come twice.
    """
    asked = ask(scene)
    rng = np.random.default_rng((scene.seed, 3))
    weights = np.array([1 / answer_counts()[each.kind, each.answer] for each in asked])
    keys = rng.exponential(size=len(asked)) / weights
    chosen = np.resize(np.argsort(keys), count)
    return [asked[number] for number in chosen]


class Lessons(IterableDataset[Lesson]):
    """Lessons of one training seed.

    Args:
        tokenizer: of the checkpoint.
        seed: of the training.
        numbers: of the lessons, from 0.
        num_videos: of a lesson, of all processes together.
        part: number of this process, and how many there are; each takes its part of a lesson.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        numbers: range,
        num_videos: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._part = part
        self._tokenizer = tokenizer
        self._first_seed = FIRST_SEEDS["train"] + seed * SEEDS_OF_A_TRAINING
        self._numbers = numbers
        self._num_videos = num_videos

    def __iter__(self) -> Iterator[Lesson]:
        for number in self._numbers:
            first = self._first_seed + number * SEEDS_OF_A_LESSON
            places = range(self._part[0], self._num_videos, self._part[1])
            scenes = [draw_scene(first + place) for place in places]
            questions = [choose_questions(scene, NUM_QUESTIONS) for scene in scenes]
            yield make_lesson(scenes, questions, self._tokenizer)

    def in_background(self) -> Iterator[Lesson]:
        """The same lessons, made by another process."""
        loader = DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4)
        return iter(loader)
