"""Rows of a question file: a JSON list, JSON lines or Parquet, each with its place for messages."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError

_SURROGATE = re.compile("[\ud800-\udfff]")


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
        ConfigError: no such file, a line that is no JSON object, text that is not Unicode, or no
            row at all.
    """
    try:
        read = _read_parquet if path.suffix.lower() == ".parquet" else _read_json
        rows = [Row(values, where, path.stem) for where, values in read(path)]
    except OSError as error:
        raise ConfigError(f"cannot read questions {path}: {error.strerror or error}") from error
    if not rows:
        raise ConfigError(f"{path} holds no question; expected a JSON object per line, or a list")
    for row in rows:
        _check_text(row)
    return rows


def require_unicode(text: str, what: str) -> None:
    """Raise ConfigError where a text holds half of a surrogate pair, which UTF-8 cannot write."""
    found = _SURROGATE.search(text)
    if found:
        raise ConfigError(
            f"{what} holds {found[0]!r}, half of a surrogate pair and no Unicode text; write the "
            "whole character, or remove it"
        )


def _check_text(row: Row) -> None:
    for key, value in row.values.items():
        for text in (key, *_texts(value)):
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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    if text.lstrip().startswith("["):
        yield from _listed(path, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(_parsed(line, where), where)


def _listed(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, value in enumerate(_parsed(text, str(path)), 1):
        where = f"{path}, object {number}"
        yield where, _object(value, where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: not JSON ({error}); expected an object per line, or one list of objects"
        ) from error


def _object(value: Any, where: str) -> dict[str, Any]:
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
