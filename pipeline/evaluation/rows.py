"""Rows of a question file: a JSON list, JSON lines or Parquet, each with its place for messages."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError

_SURROGATE = re.compile("[\ud800-\udfff]")

_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class _Fault(str):
    """What is wrong with a JSON value; stands in its place until the row is known."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a question file.

    Attributes:
        values: its keys and values.
        where: the file and the line or row, for messages.
        task: the file's name without its extension.
    """

    values: Mapping[str, Any]
    where: str
    task: str


def read_rows(path: Path) -> list[Row]:
    """All rows of a ``.parquet`` file, or of a JSON list or JSON lines under any other name.

    Raises:
        ConfigError: no such file, a line that is no JSON object, a key given twice in one object,
            text that is not Unicode, one object round a list of others, or no row at all.
    """
    try:
        read = _read_parquet if path.suffix.lower() == ".parquet" else _read_json
        rows = [Row(values, where, path.stem) for where, values in read(path)]
    except OSError as error:
        raise ConfigError(f"cannot read questions {path}: {error.strerror or error}") from error
    if not rows:
        raise ConfigError(f"{path} holds no question; expected a JSON object per line, or a list")
    for row in rows:
        _check_texts(row)
    return rows


def require_unicode(text: str, what: str) -> None:
    """Raise ConfigError where a text holds half of a surrogate pair, which UTF-8 cannot write."""
    found = _SURROGATE.search(text)
    if found:
        raise ConfigError(
            f"{what} holds {found[0]!r}, half of a surrogate pair and no Unicode text; write the "
            "whole character, or remove it"
        )


def as_text(value: Any) -> str:
    """Text without white space round it, or a number written out; "" for all else and for NaN."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return "" if isinstance(value, float) and math.isnan(value) else str(value).strip()


def _check_texts(row: Row) -> None:
    for key, value in row.values.items():
        for text in (key, *_texts(value)):
            if isinstance(text, _Fault):
                raise ConfigError(f"{row.where}: {key!r}: {text}")
            require_unicode(text, f"{row.where}: {key!r}")


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys included."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            left += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            left += each


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _decoded(path)
    if text.lstrip().startswith("["):
        yield from _listed(path, text)
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            value = _loaded(line)
        except (ValueError, RecursionError) as error:
            _refuse_spread_object(path, text)
            raise _not_json(path, where, error) from error
        values = _object(value, where)
        if len(lines) == 1 and _wrapped_list(values):
            raise _one_object(path, values)
        yield where, values


def _listed(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = _loaded(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, str(path), error) from error
    for number, value in enumerate(values, 1):
        where = f"{path}, object {number}"
        yield where, _object(value, where)


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        with path.open("rb") as file:
            is_utf_16 = file.read(2) in _UTF_16_MARKS
        found = "it begins with the mark of UTF-16" if is_utf_16 else str(error)
        raise ConfigError(
            f"{path} is not UTF-8 text ({found}); save it as UTF-8{_kinds_read(path)}"
        ) from error


def _loaded(text: str) -> Any:
    """A JSON value; what the standard forbids and Python reads is a ``_Fault`` in it."""
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_constant)


def _constant(name: str) -> _Fault:
    return _Fault(f"not JSON (found {name}); expected a number, null, or text in quotes")


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            value = _Fault(f"the key {key!r} is given twice in one object; keep one of the two")
        values[key] = value
    return values


def _not_json(path: Path, where: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{where}: not JSON ({error}); expected an object per line, or one list of objects"
        f"{_kinds_read(path)}"
    )


def _kinds_read(path: Path) -> str:
    if path.suffix.lower() in (".json", ".jsonl"):
        return ""
    return f"; questions are read from .jsonl, .json and .parquet, and this is {path.name}"


def _refuse_spread_object(path: Path, text: str) -> None:
    """Raise ConfigError where a text that is no JSON lines is one object on several of them."""
    try:
        values = _loaded(text)
    except (ValueError, RecursionError):
        return
    raise _one_object(path, values)


def _one_object(path: Path, values: Mapping[str, Any]) -> ConfigError:
    name = _wrapped_list(values)
    found = "on several lines; write it on one line, or between [ and ]"
    if name:
        found = f"with the list {name!r}; save that list alone"
    return ConfigError(
        f"{path}: expected a list of objects or one object per line; found one object {found}"
    )


def _wrapped_list(values: Mapping[str, Any]) -> str | None:
    """The list of objects that an object stands round, where it is no question itself.

    A list ``questions`` beside the keys of a video is the questions of that video.
    """
    if "question" in values:
        return None
    for name, value in values.items():
        of_video = name == "questions" and len(values) > 1
        holds_objects = isinstance(value, list) and value and isinstance(value[0], dict)
        if holds_objects and not of_video:
            return name
    return None


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, _Fault):
        raise ConfigError(f"{where}: {value}")
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {str(value)[:60]!r}")
    return value


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is no Parquet file: {error}") from error
    for number, values in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", values
