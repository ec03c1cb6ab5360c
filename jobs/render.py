"""Rows to text: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from schemas.errors import QueryError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "json", "csv")

MAX_CELL = 100


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table; points in time as text, which may be finer or farther than Python's.

    Raises:
        QueryError: one within a list or struct is finer or farther.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) or pa.types.is_time(field.type):
            texts = table.column(place).cast(pa.string())
            texts = pc.replace_substring_regex(texts, r"\.0+(Z|[+-]\d+)?$", r"\1")
            table = table.set_column(place, field.name, texts)
    try:
        columns = [_values(column) for column in table.columns]
    except (ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise QueryError(f"an answer cannot be shown: {reason}. Ask for x::VARCHAR.") from error
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Values as Python has them; maps are pairs where one has lists, structs or maps for keys."""
    maps = None if _has_nested_keys(column.type) else "lossy"
    values: list[Any] = column.to_pylist(maps_as_pydicts=maps)
    return values


def _has_nested_keys(kind: pa.DataType) -> bool:
    import pyarrow as pa

    inner = [kind.field(n).type for n in range(kind.num_fields)]
    is_one = pa.types.is_map(kind) and pa.types.is_nested(kind.key_type)
    return is_one or any(map(_has_nested_keys, inner))


def render_rows(
    rows: Sequence[Mapping[str, Any]], style: str, *, columns: Sequence[str] = ()
) -> str:
    """Rows of equal keys in one of ``FORMATS``; JSON is one object per line.

    ``columns`` names them where there may be no row.
    """
    if style == "json":
        return "\n".join(_json(row) for row in rows)
    if style == "csv":
        return _csv([_csv_row(row) for row in rows], list(rows[0]) if rows else columns)
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
    number = int | float | Decimal | None
    is_number = [all(isinstance(row[name], number) for row in rows) for name in names]

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
    return f"{value:.4g}" if isinstance(value, float) else " ".join(_text(value).split())


def _text(value: Any) -> str:
    """One value as a person writes it; what has parts is JSON."""
    plain = value if isinstance(value, Decimal) else _plain(value)
    return _json(plain) if isinstance(plain, dict | list) else str(plain)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def _json(value: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON knows: NaN and infinity become null, points in time ISO 8601, at any depth."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case Mapping():
            return {_text(name): _plain(inner) for name, inner in value.items()}
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime():
            return value.isoformat(" ")
        case date() | time():
            return value.isoformat()
        case timedelta():
            nanoseconds = value.seconds * 10**9 + value.microseconds * 1000
            return f"P{value.days}DT{_seconds(nanoseconds)}S"
        case bytes():
            return value.hex()
        case (months, days, nanoseconds) if hasattr(value, "nanoseconds"):  # SQL's INTERVAL
            return f"P{months}M{days}DT{_seconds(nanoseconds)}S"
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return str(value)


def _seconds(nanoseconds: int) -> str:
    whole, rest = divmod(abs(nanoseconds), 10**9)
    digits = f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
    return f"-{digits}" if nanoseconds < 0 else digits


def _csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    is_kept = float | Decimal | None
    return {
        name: value if isinstance(value, is_kept) else _text(value) for name, value in row.items()
    }


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")
