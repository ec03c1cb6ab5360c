"""Questions to be judged by: how often each answer is right, and what words alone tell."""

import re
from collections import Counter

import pytest

from examples.toyworld.make_videos import draw_scenes
from examples.toyworld.question_set import balanced, blind_answers
from examples.toyworld.questions import KINDS, ask


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes("test", 120)


@pytest.mark.parametrize("per_kind", [1, 12, 50])
def test_every_answer_of_a_kind_is_right_as_often_as_any_other(scenes, per_kind):
    questions = [each.question for each in balanced(scenes, per_kind=per_kind, seed=0)]
    assert {question.kind for question in questions} == set(KINDS)
    for kind in KINDS:
        answers = Counter(question.answer for question in questions if question.kind == kind)
        assert len(set(answers.values())) == 1, answers
        assert answers.total() < per_kind + len(answers), "rounded up to a multiple"


def test_a_rare_answer_holds_its_kind_down(scenes):
    asked = [question for scene in scenes for question in ask(scene)]
    chosen = Counter(each.question.kind for each in balanced(scenes, per_kind=10_000, seed=0))
    for kind in KINDS:
        answers = Counter(question.answer for question in asked if question.kind == kind)
        assert chosen[kind] == len(answers) * min(answers.values())


def test_an_equal_seed_chooses_equal_questions_in_the_order_of_the_scenes(scenes):
    first, again, other = (balanced(scenes, per_kind=20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    seeds = [each.scene.seed for each in first]
    assert seeds == sorted(seeds)


@pytest.mark.slow
def test_words_alone_are_answered_about_as_well_as_by_guessing_among_the_possible_answers(scenes):
    blind = blind_answers()
    asked = balanced(scenes, per_kind=60, seed=0)
    right = sum(blind[each.question.text] == each.question.answer for each in asked)
    texts: dict[str, set[str]] = {}
    for scene in scenes:
        for question in ask(scene):
            texts.setdefault(question.text, set()).add(question.answer)
    guessed = sum(1 / len(texts[each.question.text]) for each in asked)
    assert abs(right - guessed) / len(asked) < 0.06
    assert all(re.fullmatch(r"\w+", answer) for answer in blind.values())
