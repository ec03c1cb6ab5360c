"""What an evaluation found: one row per setting, over all questions and by group."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.intervals import RESAMPLES, Interval, mean_intervals, paired_intervals
from pipeline.evaluation.questions import Question
from pipeline.evaluation.records import Answered
from schemas.errors import ConfigError
from schemas.video import Scalar

MEAN_OF_GROUPS = "mean of groups"

VIDEO = "video"
"""A column that every question has: its video, if no column of its own is called so."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One setting on some questions.

    Attributes:
        by: the column that chose the questions, "" for all of them.
        group: its value there; for the mean over the column's groups ``MEAN_OF_GROUPS``.
        setting: how much was read.
        num_questions: asked.
        num_videos: that they are about.
        mean_tokens: visual tokens read, the mean over these videos.
        keep_ratio: visual tokens read of all before fusion, over these videos together.
        accuracy: share of right answers.
        difference: accuracy minus that of the first setting, None for that one.
    """

    by: str
    group: Scalar
    setting: str
    num_questions: int
    num_videos: int
    mean_tokens: float
    keep_ratio: float
    accuracy: Interval
    difference: Interval | None

    def cells(self, *, with_groups: bool) -> dict[str, Any]:
        """What a table shows."""
        group = {"by": self.by, "group": "(none)" if self.group is None else self.group}
        change = self.difference
        return {
            **(group if with_groups else {}),
            "setting": self.setting,
            "questions": self.num_questions,
            "videos": self.num_videos,
            "tokens": round(self.mean_tokens, 1),
            "keep_ratio": round(self.keep_ratio, 4),
            "accuracy": f"{self.accuracy.value:.4f}",
            "95 %": _ends(self.accuracy, self.num_videos),
            "vs_full": f"{change.value:+.4f}" if change else "",
            "95 % of it": _ends(change, self.num_videos, sign="+") if change else "",
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "by": self.by or None,
            "group": self.group,
            "setting": self.setting,
            "questions": self.num_questions,
            "videos": self.num_videos,
            "mean_tokens": self.mean_tokens,
            "keep_ratio": self.keep_ratio,
            "accuracy": _numbers(self.accuracy, self.num_videos),
            "difference": _numbers(self.difference, self.num_videos) if self.difference else None,
        }


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Rows in the order of a table: all questions, the mean of groups, then each group.

    Attributes:
        rows: one per setting and set of questions.
        about: what was asked of what; plain JSON values.
    """

    rows: tuple[ResultRow, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Rows for people."""
        with_groups = any(row.by for row in self.rows)
        return [row.cells(with_groups=with_groups) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        return {**self.about, "results": [row.to_json() for row in self.rows]}


def summarize(
    questions: Sequence[Question],
    answers_SQ: Sequence[Sequence[Answered]],
    *,
    by: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[ResultRow, ...]:
    """Accuracies of settings and their differences to the first one.

    Args:
        questions: Q of them.
        answers_SQ: for each of S settings the Q answers, in the order of ``questions``.
        by: columns to break results down by, ``VIDEO`` for each video; the first also gives a mean
            over its groups, in which each counts the same however many questions it has. Questions
            without the column are a group of their own, which is not in that mean.
        resamples: of the bootstrap over videos.
        seed: of its draw.

    Raises:
        ConfigError: a column that no question has.
    """
    check_columns(questions, by)
    table = _Table(questions, answers_SQ, resamples, seed)
    rows = list(table.rows(range(len(questions)), "", "all"))
    for number, name in enumerate(by):
        groups = [_group(_value(question, name)) for question in questions]
        grouped = [index for index, group in enumerate(groups) if group.value is not None]
        if number == 0 and grouped:
            of_grouped = [groups[index] for index in grouped]
            rows += table.rows(grouped, name, MEAN_OF_GROUPS, groups=of_grouped)
        members: dict[_Group, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        for group in sorted(members, key=_place):
            rows += table.rows(members[group], name, group.value)
    return tuple(rows)


def check_columns(questions: Sequence[Question], by: Sequence[str]) -> None:
    """Raise ConfigError unless some question has each of these columns."""
    known = sorted({VIDEO, *(name for question in questions for name in question.columns)})
    for name in by:
        if name not in known:
            columns = ", ".join(known)
            raise ConfigError(f"no question has the column {name!r}; the columns are: {columns}")


@dataclass(frozen=True, slots=True)
class _Table:
    questions: Sequence[Question]
    answers: Sequence[Sequence[Answered]]
    resamples: int
    seed: int

    def rows(
        self,
        chosen: Sequence[int],
        by: str,
        group: Scalar,
        *,
        groups: Sequence[object] | None = None,
    ) -> Iterator[ResultRow]:
        """One row per setting, over the chosen questions, whose ``groups`` stand in their order."""
        answers_SQ = [[answers[index] for index in chosen] for answers in self.answers]
        videos_Q = [answer.video_id for answer in answers_SQ[0]]
        right_SQ = np.array([[answer.is_right for answer in row] for row in answers_SQ])
        draw: dict[str, Any] = {"groups_Q": groups, "resamples": self.resamples, "seed": self.seed}
        accuracies = mean_intervals(right_SQ, videos_Q, **draw)
        differences = paired_intervals(right_SQ, right_SQ[0], videos_Q, **draw)
        for number, answers in enumerate(answers_SQ):
            read = {each.video_id: (each.num_tokens, each.tokens_before) for each in answers}
            num_tokens, tokens_before = np.sum(list(read.values()), axis=0)
            yield ResultRow(
                by=by,
                group=group,
                setting=answers[0].setting,
                num_questions=len(answers),
                num_videos=len(read),
                mean_tokens=float(num_tokens / len(read)),
                keep_ratio=float(num_tokens / tokens_before),
                accuracy=accuracies[number],
                difference=differences[number] if number else None,
            )


def _numbers(interval: Interval, num_videos: int) -> dict[str, float | None]:
    """Of one video there is no interval."""
    if num_videos > 1:
        return dataclasses.asdict(interval)
    return {"value": interval.value, "low": None, "high": None}


def _ends(interval: Interval, num_videos: int, *, sign: str = "") -> str:
    return f"{interval.low:{sign}.4f} .. {interval.high:{sign}.4f}" if num_videos > 1 else "-"


def _value(question: Question, name: str) -> Scalar:
    return question.columns.get(name, question.video_id if name == VIDEO else None)


class _Group(NamedTuple):
    """A column's value; ``true`` is another one than 1, though they are equal."""

    is_bool: bool
    value: Scalar


def _group(value: Scalar) -> _Group:
    return _Group(isinstance(value, bool), value)


def _place(group: _Group) -> tuple[bool, bool, float, str]:
    """Numbers by size, then text, then None; integers may be beyond the largest float."""
    value = group.value
    number = 0 if value is None or isinstance(value, str) else value
    return value is None, isinstance(value, str), number, str(value)
