"""Results as Markdown."""

from collections.abc import Iterable, Sequence

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.report import MEAN_OF_GROUPS, ResultRow

MEAN_OF_KINDS = ("kind", MEAN_OF_GROUPS)
"""The mean of kinds: each counts the same."""


def find(rows: Iterable[ResultRow], setting: str, by: str, group: str) -> ResultRow:
    """The row of one setting and group."""
    return next(r for r in rows if (r.setting, r.by, r.group) == (setting, by, group))


def percent(interval: Interval) -> str:
    """Accuracy with its interval, in percent."""
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f}..{100 * interval.high:.1f})"


def points(interval: Interval | None) -> str:
    """A difference with its interval, in points; bold where the interval leaves out 0."""
    if interval is None:
        return "-"
    value, low, high = (100 * each for each in (interval.value, interval.low, interval.high))
    if low <= 0 <= high:
        return _signed(value, low, high, digits=1)
    digits = 1 if min(abs(low), abs(high)) >= 0.05 else 2
    return f"**{_signed(value, low, high, digits=digits)}**"


def _signed(value: float, low: float, high: float, *, digits: int) -> str:
    """With signs; nought is +0.0, from whichever side it was rounded."""
    first, second, third = (
        f"{round(each, digits) + 0.0:+.{digits}f}" for each in (value, low, high)
    )
    return f"{first} ({second}..{third})"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    rule = "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|"
    return "\n".join([_line(heads), rule, *map(_line, lines)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
