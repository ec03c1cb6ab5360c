"""How question files name things: our own, and the annotations of four public benchmarks."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.evaluation.rows import Row
from schemas.errors import ConfigError

NUM_OPTION_COLUMNS = 5
"""Of LongVideoBench's Parquet files."""

MISSPELT = 0.92
"""Likeness from which a key is taken for another one misspelt, both without case and marks."""

_MARKS = re.compile(r"[\W_]")

_ID_IN_URL = re.compile(r"(?:[?&]v=|youtu\.be/|/shorts/)([\w-]+)")


@dataclass(frozen=True, slots=True)
class Layout:
    """Keys of one kind of annotation file.

    Attributes:
        name: as ``--layout`` takes it.
        video: keys that may name the video; the first that is there does.
        options: key of the list of options.
        answer: key of the right answer.
        answer_is: "letter", "text", "index" (from 0), or "either" of letter and text.
        question_id: key of the question's own id, "" where there is none.
        signs: keys that a row of this layout has.
        strange: keys that it never has.
        needs_options: every question has options.
        names_task: the file's name is a column, ``task``.
        part_start: key of where the part of the video begins that a question is about, "" where
            questions are about whole videos.
        answered_file: the published file that holds answers, where another one holds none.
    """

    name: str
    video: tuple[str, ...]
    options: str
    answer: str
    answer_is: str
    question_id: str
    signs: frozenset[str]
    strange: frozenset[str] = frozenset()
    needs_options: bool = True
    names_task: bool = False
    part_start: str = ""
    answered_file: str = ""

    @property
    def keys(self) -> frozenset[str]:
        """All keys that a question is made from."""
        named = (*self.video, "question", self.options, self.answer, self.question_id)
        return frozenset(filter(None, named))


TOKENREEL = Layout(
    name="tokenreel",
    video=("video_id",),
    options="options",
    answer="answer",
    answer_is="either",
    question_id="question_id",
    signs=frozenset({"video_id", "question"}),
    strange=frozenset({"videoID", "candidates", "correct_choice"}),
    needs_options=False,
)
VIDEO_MME = Layout(
    name="video-mme",
    video=("videoID", "video_id"),
    options="options",
    answer="answer",
    answer_is="letter",
    question_id="question_id",
    signs=frozenset({"videoID", "options"}),
)
MVBENCH = Layout(
    name="mvbench",
    video=("video",),
    options="candidates",
    answer="answer",
    answer_is="text",
    question_id="",
    signs=frozenset({"video", "candidates"}),
    strange=frozenset({"question_type"}),
    names_task=True,
    part_start="start",
)
MLVU = Layout(
    name="mlvu",
    video=("video",),
    options="candidates",
    answer="answer",
    answer_is="text",
    question_id="",
    signs=frozenset({"video", "question_type"}),
)
LONGVIDEOBENCH = Layout(
    name="longvideobench",
    video=("video_path", "video_id"),
    options="candidates",
    answer="correct_choice",
    answer_is="index",
    question_id="id",
    signs=frozenset({"video_id", "candidates"}),
    strange=frozenset({"answer"}),
    answered_file="lvb_val.json",
)

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (TOKENREEL, VIDEO_MME, MVBENCH, MLVU, LONGVIDEOBENCH)
}
"""By name; "auto" finds the one whose keys a file has."""


def detect_layout(rows: Sequence[Row]) -> Layout:
    """The one layout whose keys the first row has.

    Raises:
        ConfigError: none fits, or more than one.
    """
    keys = rows[0].values.keys()
    found = _fitting(keys)
    if len(found) != 1:
        fits = " and ".join(each.name for each in found) or "no layout"
        raise ConfigError(
            f"{rows[0].where}: {fits} has the keys {', '.join(sorted(keys))}. Our own is video_id, "
            f"question, answer; say --layout with one of: {', '.join(LAYOUTS)}"
        )
    return found[0]


def _fitting(keys: Set[str]) -> list[Layout]:
    return [each for each in LAYOUTS.values() if each.signs <= keys and not each.strange & keys]


def other_layout(row: Row, layout: Layout) -> Layout | None:
    """The one layout whose keys a row has, where that is not the one it is read as."""
    found = _fitting(row.values.keys())
    return found[0] if len(found) == 1 and found[0] is not layout else None


def refusal(row: Row, key: str, expected: str, layout: Layout) -> ConfigError:
    """What is wrong with a row's value, or that it is missing, and whose keys the row has."""
    found = f"is {row.values[key]!r:.60}" if key in row.values else "is missing"
    other = other_layout(row, layout)
    advice = ""
    if other:
        advice = (
            f"; its keys are those of {other.name} and it is read as {layout.name}: give --layout "
            f"{other.name}, or each layout a file of its own"
        )
    return ConfigError(f"{row.where}: {key!r} {found}; expected {expected}{advice}")


def check_rows(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    """Refuse files that would be read as something else than what was meant.

    Raises:
        ConfigError: a key that is nearly one of the layout's, which the row lacks; a file of a
            benchmark whose answers are not published.
    """
    for row in rows:
        _check_spelling(row, layout)
    if not layout.answered_file or other_layout(rows[0], layout):
        return
    if all(row.values.get(layout.answer) is None for row in rows):
        raise ConfigError(
            f"{path} holds no answers ({layout.answer!r} is missing or null throughout, as in a "
            "test split) and cannot be scored; use the validation file "
            f"({layout.answered_file})"
        )


def _check_spelling(row: Row, layout: Layout) -> None:
    given = {key for key, value in row.values.items() if value is not None}
    unknown = {_plain(key): key for key in sorted(given - layout.keys)}
    for expected in (layout.options, layout.answer, layout.question_id):
        if not expected or row.values.get(expected) is not None:
            continue
        near = _misspelt(_plain(expected), unknown)
        if near is not None:
            raise ConfigError(
                f"{row.where}: found the key {unknown[near]!r}, expected {expected!r}; rename "
                "it (a column of its own needs a name less alike)"
            )


def _misspelt(expected: str, given: Collection[str]) -> str | None:
    """The one that is nearly ``expected``, or has its letters in another order."""
    near = difflib.get_close_matches(expected, given, n=1, cutoff=MISSPELT)
    shuffled = [name for name in given if sorted(name) == sorted(expected)]
    return next(iter(near + shuffled), None)


def _plain(key: str) -> str:
    return _MARKS.sub("", key.casefold())


def unfold(rows: Sequence[Row]) -> list[Row]:
    """A row per question, its options a list, whichever form of an annotation was published.

    Rows of Video-MME may be videos with a list ``questions``: the video's file is named by
    ``videoID``, or that is part of its ``url``, and ``video_id`` is a number among the videos.
    Rows of LongVideoBench may have ``option0`` to ``option4``, the last ones "N/A" where there are
    fewer.

    Raises:
        ConfigError: a question that is no object.
    """
    return [_with_candidates(single) for row in rows for single in _unfolded(row)]


def _with_candidates(row: Row) -> Row:
    keys = row.values.keys()
    is_test = {"option0", "video_path"} <= keys and "answer" not in keys
    if "candidates" in keys or not ({"option0", "correct_choice"} <= keys or is_test):
        return row
    names = [f"option{number}" for number in range(NUM_OPTION_COLUMNS)]
    options = [row.values.get(name) for name in names]
    while options and options[-1] in (None, "N/A"):
        options.pop()
    values = {name: value for name, value in row.values.items() if name not in names}
    return replace(row, values={**values, "candidates": options})


def _unfolded(row: Row) -> Iterator[Row]:
    inner = row.values.get("questions")
    if not isinstance(inner, list):
        yield row
        return
    of_video = {name: value for name, value in row.values.items() if name != "questions"}
    if not of_video.get("videoID"):
        of_video["videoID"] = _id_in_url(of_video.get("url")) or of_video.get("video_id")
    for number, values in enumerate(inner, 1):
        where = f"{row.where}, question {number}"
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected a JSON object, found {str(values)[:60]!r}")
        yield replace(row, values={**of_video, **values}, where=where)


def _id_in_url(url: Any) -> str | None:
    found = _ID_IN_URL.search(url) if isinstance(url, str) else None
    return found[1] if found else None
