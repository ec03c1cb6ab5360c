"""Questions to be judged by: kinds and answers alike often, and what is known without looking."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.toyworld.draw import draw_scene
from examples.toyworld.questions import Question, ask
from examples.toyworld.scene import FIRST_SEEDS, Scene

READ_SCENES = 2000
"""Scenes from which it is learnt what a question's words tell about its answer."""


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One question about one scene."""

    scene: Scene
    question: Question


def balanced(scenes: Sequence[Scene], *, per_kind: int, seed: int) -> list[AskedQuestion]:
    """Choose questions: of each kind as many, and of each of its answers as many.

    A kind has ``per_kind`` questions, rounded up to a multiple of the number of its answers, or
    fewer where an answer is too rare in the scenes. The order is that of the scenes.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    asked = [AskedQuestion(scene, question) for scene in scenes for question in ask(scene)]
    for place, each in enumerate(asked):
        found[each.question.kind][each.question.answer].append(place)
    chosen: list[int] = []
    for answers in found.values():
        fair = -(-per_kind // len(answers))
        count = min(fair, *(len(places) for places in answers.values()))
        for places in answers.values():
            chosen += rng.choice(places, count, replace=False).tolist()
    return [asked[place] for place in sorted(chosen)]


def blind_answers() -> Mapping[str, str]:
    """The likeliest answer to each text, if all answers of a kind are alike often."""
    first = FIRST_SEEDS["train"]
    questions = [
        question for number in range(READ_SCENES) for question in ask(draw_scene(first + number))
    ]
    common = Counter((question.kind, question.answer) for question in questions)
    weights: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for question in questions:
        weights[question.text][question.answer] += 1 / common[question.kind, question.answer]
    return {text: max(answers, key=lambda a: answers[a]) for text, answers in weights.items()}
