import pytest

from pipeline.evaluation.questions import LETTER_REQUEST, Question
from pipeline.evaluation.scoring import is_right, normalized


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red", " red. "),
        ("two  balls", "Two\nballs!"),
        ('"left"', "left"),
        ("**left**", "left"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u201cyes\u201d", "yes"),
    ],
)
def test_case_space_and_marks_round_an_answer_do_not_count(one, other):
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(("one", "other"), [("-3", "3"), ("5%", "5"), ("a b", "ab"), ("?", "!")])
def test_signs_and_inner_spaces_count(one, other):
    assert normalized(one) != normalized(other)


def test_a_short_answer_is_right_when_it_reads_the_same():
    question = Question("q", "v", "Which colour?", "dark red")
    assert is_right(question, "Dark red.")
    assert not is_right(question, "It is dark red")
    assert not is_right(question, "")


def test_a_letter_is_right_when_its_option_reads_as_the_right_one():
    question = Question("q", "v", "Which?", "A", options=("red", "blue", "red"))
    assert [is_right(question, letter) for letter in "ABCD"] == [True, False, True, False]


@pytest.mark.parametrize("answer", ["", "AB", "ABC", "BC"])
def test_an_answer_that_is_not_one_letter_is_wrong(answer):
    question = Question("q", "v", "Which?", "A", options=("red", "red", "red"))
    assert not is_right(question, answer)


def test_the_prompt_lists_the_options_and_asks_for_a_letter():
    question = Question("q", "v", "Which colour?", "B", options=("red", "blue"))
    assert question.prompt == f"Which colour?\nA. red\nB. blue\n{LETTER_REQUEST}"
    assert Question("q", "v", "Which colour?", "red").prompt == "Which colour?"
