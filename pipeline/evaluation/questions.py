"""Questions with known answers, and how they are read from files."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.layouts import (
    LAYOUTS,
    Layout,
    check_rows,
    detect_layout,
    other_layout,
    refusal,
    unfold,
)
from pipeline.evaluation.rows import Row, as_text, read_rows
from pipeline.evaluation.scoring import normalized
from schemas.errors import ConfigError
from schemas.video import Scalar

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

LETTER_REQUEST = "Answer with the letter of the right option."

_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(\S.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Z])[.)]?")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one video.

    Attributes:
        question_id: unique among the questions of a run.
        video_id: the video, as the annotation names it or as the cache does.
        text: what is asked, without the options.
        answer: the letter of the right option, or the short answer.
        options: without letters; empty where a short answer is expected.
        columns: all else that is known, to break results down by.
        is_about_part: asked of a part of the video, by its annotation.
    """

    question_id: str
    video_id: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    is_about_part: bool = False

    @property
    def letters(self) -> str:
        """One letter for each option."""
        return LETTERS[: len(self.options)]

    @property
    def prompt(self) -> str:
        """What the model is asked: the text, then the options and the request for a letter."""
        if not self.options:
            return self.text
        pairs = zip(self.letters, self.options, strict=True)
        lines = [f"{letter}. {text}" for letter, text in pairs]
        return "\n".join([self.text, *lines, LETTER_REQUEST])

    def option(self, letter: str) -> str:
        """The option of a letter."""
        return self.options[self.letters.index(letter)]


def read_questions(paths: Sequence[Path], *, layout: str = "auto") -> list[Question]:
    """Questions of one or more files of one layout, in their order.

    Args:
        paths: JSON lines, a JSON list or Parquet.
        layout: one of ``LAYOUTS``; "auto" goes by the keys of each file's first row.

    Raises:
        ConfigError: a file, row or value that cannot be used, with its place; an id or a file
            given twice.
    """
    questions = []
    places: dict[str, list[str]] = {}
    made = set()
    for path, count in Counter(paths).items():
        if count > 1:
            raise ConfigError(f"{path} is given twice; give each file once")
        rows = unfold(read_rows(path))
        if not rows:
            raise ConfigError(f"{path} holds no question")
        chosen = detect_layout(rows) if layout == "auto" else _layout(layout)
        check_rows(path, rows, chosen)
        for number, row in enumerate(rows, 1):
            question = _question(row, number, chosen)
            questions.append(question)
            places.setdefault(question.question_id, []).append(row.where)
            if not _has_id(row, chosen):
                made.add(question.question_id)
    _check_ids(places, made)
    return questions


def _check_ids(places: Mapping[str, Sequence[str]], made: Set[str]) -> None:
    """Raise ConfigError where an id stands at two places; ``made`` ones come from a file's name."""
    repeated = [name for name, found in places.items() if len(found) > 1]
    if not repeated:
        return
    first = repeated[0]
    advice = "give each question an id of its own, or leave the ids out"
    if first in made:
        advice = (
            "a question without an id gets its file's name and its place there, so rename one of "
            "the files, or give the questions ids"
        )
    told = "1 question id is given more than once,"
    if len(repeated) > 1:
        told = f"{len(repeated)} question ids are given more than once, the first"
    raise ConfigError(f"{told} {first!r} at {' and '.join(places[first][:2])}; {advice}")


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r} is unknown; expected auto, {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _question(row: Row, number: int, layout: Layout) -> Question:
    video_key = next((key for key in layout.video if row.values.get(key)), layout.video[0])
    written = _options(row, layout)
    options = _without_letters(written)
    used = {video_key, "question", layout.options, layout.answer, layout.question_id}
    columns = {key: _scalar(value) for key, value in row.values.items() if key not in used}
    if layout.names_task:
        columns.setdefault("task", row.task)
    if options:
        answer = _right_letter(row, layout, options, written)
    else:
        answer = _text(row, layout.answer, layout)
    id_made = f"{row.task}:{number}"
    return Question(
        question_id=_text(row, layout.question_id, layout) if _has_id(row, layout) else id_made,
        video_id=_text(row, video_key, layout),
        text=_text(row, "question", layout),
        answer=answer,
        options=tuple(options),
        columns=columns,
        is_about_part=bool(layout.part_start) and row.values.get(layout.part_start) is not None,
    )


def _has_id(row: Row, layout: Layout) -> bool:
    return row.values.get(layout.question_id) is not None


def _text(row: Row, key: str, layout: Layout) -> str:
    """A value that is text, or a number written out."""
    text = as_text(row.values.get(key))
    if not text:
        raise refusal(row, key, "text that is not empty", layout)
    return text


def _options(row: Row, layout: Layout) -> list[str]:
    """The options as they are written; none where the row has none."""
    values = row.values.get(layout.options)
    if values is None and not layout.needs_options:
        return []
    if not isinstance(values, list) or not 2 <= len(values) <= len(LETTERS):
        expected = f"a list of 2 to {len(LETTERS)} options"
        if values is None and not other_layout(row, layout):
            expected += " (tasks of free text cannot be scored here)"
        raise refusal(row, layout.options, expected, layout)
    options = [as_text(value) for value in values]
    if not all(options):
        raise ConfigError(f"{row.where}: an option is neither text nor a number, or empty")
    return options


def _without_letters(options: Sequence[str]) -> list[str]:
    """Options such as "A. red" without their letters, where all carry their own."""
    found = [_LETTERED.fullmatch(option) for option in options]
    if not all(match and match[1] == letter for match, letter in zip(found, LETTERS, strict=False)):
        return list(options)
    return [match[2].strip() for match in found if match]


def _right_letter(row: Row, layout: Layout, options: Sequence[str], written: Sequence[str]) -> str:
    """The letter of the right option.

    Raises:
        ConfigError: the answer is none of the options, or stands for two that differ.
    """
    kind, value = layout.answer_is, row.values.get(layout.answer)
    if value is None:
        raise refusal(row, layout.answer, _EXPECTED[kind], layout)
    found: set[int] = set()
    if kind == "index":
        found = {value} if type(value) is int and 0 <= value < len(options) else set()
    else:
        answer = _text(row, layout.answer, layout)
        letter = _LETTER.fullmatch(answer)
        if kind != "text" and letter and letter[1] in LETTERS[: len(options)]:
            found.add(LETTERS.index(letter[1]))
        if kind != "letter" or not found:
            found |= _same_text(answer, options) or _same_text(answer, written)
    texts = {options[index] for index in found}
    if len(texts) != 1:
        what = "stands for more than one" if texts else "is none"
        raise ConfigError(
            f"{row.where}: {layout.answer!r} is {value!r} and {what} of the options "
            f"{list(options)}; expected {_EXPECTED[kind]}"
        )
    return LETTERS[min(found)]


_EXPECTED = {
    "index": "the number of an option, from 0",
    "letter": "the letter of an option",
    "text": "the text of an option",
    "either": "the letter of an option or its text",
}


def _same_text(answer: str, options: Sequence[str]) -> set[int]:
    """Options that are the answer, to the letter or else after ``normalized``."""
    exact = {index for index, option in enumerate(options) if option == answer}
    plain = normalized(answer)
    return exact or {index for index, option in enumerate(options) if normalized(option) == plain}


def _scalar(value: Any) -> Scalar:
    """A column's value; lists and objects as JSON text, NaN as nothing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, default=str)
