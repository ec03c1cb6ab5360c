"""Rows to text: a table for people, JSON or CSV for programs."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = ("table", "json", "csv")

MAX_CELL = 100


def render_rows(
    rows: Sequence[Mapping[str, Any]], style: str, *, columns: Sequence[str] = ()
) -> str:
    """Rows of equal keys in one of ``FORMATS``; JSON is one object per line.

    ``columns`` names them where there may be no row.
    """
    if style == "json":
        return "\n".join(json.dumps(_finite(row), default=str, allow_nan=False) for row in rows)
    if style == "csv":
        return _csv(rows, list(rows[0]) if rows else columns)
    return render_table(rows)


def render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns, numbers to the right, long cells cut but in the last column."""
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    cells = [
        [*(_cut(_cell(row[name])) for name in names[:-1]), _cell(row[names[-1]])] for row in rows
    ]
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
    is_number = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]

    def line(texts: Sequence[str]) -> str:
        placed = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(texts, widths, is_number, strict=True)
        )
        return "  ".join(placed).rstrip()

    rule = ["-" * width for width in widths]
    return "\n".join(map(line, [names, rule, *cells]))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null, at any depth."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")
