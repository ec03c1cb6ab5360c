"""Whether an answer is right."""

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evaluation.questions import Question

_SURROUNDING = " .,;:!?\"'`*()[]{}\u2018\u2019\u201c\u201d\u3002\u3001\uff0c"
"""Marks that may stand round an answer; signs such as - % $ change what it means and stay."""


def normalized(text: str) -> str:
    """Text as it is compared: NFKC, lower case, single spaces, no marks round it.

    Text of marks alone keeps them.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.strip(_SURROUNDING) or plain


def is_right(question: "Question", answer: str) -> bool:
    """Whether ``answer`` is the right one.

    With options ``answer`` is a letter, and an option that reads the same as the right one is as
    right; a short answer is compared after ``normalized``.
    """
    if not question.options:
        return normalized(answer) == normalized(question.answer)
    return answer in tuple(question.letters) and question.option(answer) == question.option(
        question.answer
    )
