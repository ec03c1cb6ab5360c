"""Rows of a corpus manifest: .csv, .jsonl or .parquet with ``video_id``, ``uri`` and more."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import CorpusError
from schemas.index import INDEX_SCHEMA
from schemas.video import Scalar

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})

_INT64 = range(-(2**63), 2**63)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_URI_NAMES = ("uri", "path")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row: ``where`` is the manifest and the line or row number, for messages."""

    where: str
    video_id: str
    uri: str
    extra: dict[str, Scalar] = field(default_factory=dict)


def read_manifest(path: Path, name: str) -> Iterator[ManifestRow]:
    """The rows of the manifest at ``path``, in order; only a CSV is held in memory as a whole.

    Messages call it ``name``.

    Values of a CSV become int, float or bool where the whole column is written so, and None where
    they are empty; "007" and numbers too long for their type stay text.

    Raises:
        CorpusError: a file, line, column or value that cannot be read, with its place.
    """
    read = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    uri_names: dict[tuple[str, ...], str] = {}
    try:
        for where, values in read[path.suffix.lower()](path, name):
            names = tuple(values)
            if names not in uri_names:
                uri_names[names] = _uri_column(where, names)
            yield _row(where, values, uri_names[names])
    except OSError as error:
        raise CorpusError(
            f"cannot read corpus manifest {name}: {error.strerror or error}"
        ) from error


def _row(where: str, values: dict[str, Any], uri_name: str) -> ManifestRow:
    for name in ("video_id", uri_name):
        if not isinstance(values[name], str) or not values[name].strip():
            raise CorpusError(
                f"{where}: {name} is {values[name]!r}, expected text that is not empty"
            )
    extra = {
        name: _scalar(where, name, value)
        for name, value in values.items()
        if name not in ("video_id", uri_name)
    }
    return ManifestRow(where, values["video_id"], values[uri_name], extra)


def _uri_column(where: str, names: Sequence[str]) -> str:
    """Check the columns, and say which one names the file."""
    found = [name for name in _URI_NAMES if name in names]
    if "video_id" not in names or len(found) != 1:
        raise CorpusError(
            f"{where}: found the columns {', '.join(names)}; expected video_id and one of "
            "uri or path"
        )
    further = [name for name in names if name not in ("video_id", *found)]
    taken = {name.lower(): name for name in (*INDEX_SCHEMA.names, *found)}
    for name in further:
        if not name.strip() or not name.isprintable():
            raise CorpusError(f"{where}: {name!r} is not a column name; expected printable text")
        if name.lower() in taken:
            raise CorpusError(
                f"{where}: column {name!r} is already taken by {taken[name.lower()]!r} (SQL does "
                "not tell upper from lower case). Rename it in the manifest."
            )
        taken[name.lower()] = name
    return found[0]


def _scalar(where: str, name: str, value: object) -> Scalar:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"{where}: column {name!r} holds {value!r}, which is not valid Unicode text. "
                "Write it anew."
            ) from error
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int) and value in _INT64:
        return value
    raise CorpusError(
        f"{where}: column {name!r} holds {value!r}, expected text, a 64-bit whole number, a "
        "decimal number, true, false or null. Store anything else as text."
    )


def _read_csv(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_decoded(name, path.read_bytes()), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise CorpusError(f"{name}, line {reader.line_num}: not valid CSV: {error}") from error
    if not rows:
        raise CorpusError(f"{name} is empty, expected a first line with column names")
    _, names = rows.pop(0)
    if len(set(names)) != len(names):
        raise CorpusError(f"{name}, line 1: column names repeat: {names}")
    _uri_column(f"{name}, line 1", names)
    for line, row in rows:
        if len(row) != len(names):
            raise CorpusError(
                f"{name}, line {line}: found {len(row)} values, expected {len(names)}: "
                f"{', '.join(names)}"
            )
    columns = [
        list(values) if name in ("video_id", *_URI_NAMES) else _typed(list(values))
        for name, values in zip(names, zip(*(row for _, row in rows), strict=True), strict=False)
    ]
    for (line, _), values in zip(rows, zip(*columns, strict=True), strict=True):
        yield f"{name}, line {line}", dict(zip(names, values, strict=True))


def _typed(texts: list[str]) -> list[Scalar]:
    """One CSV column: of the first type in which all of it is written, None where empty."""
    given = [text for text in texts if text]
    if all(text.lower() in ("true", "false") for text in given):
        return [text.lower() == "true" if text else None for text in texts]
    if all(_WHOLE.fullmatch(text) for text in given):
        return [int(text) if text else None for text in texts]
    if all(_DECIMAL.fullmatch(text) for text in given):
        return [float(text) if text else None for text in texts]
    return [text or None for text in texts]


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            text = _decoded(name, content, line).removesuffix("\n")
            if not text.strip():
                continue
            where = f"{name}, line {line}"
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{where}: not valid JSON: {error}") from error
            if not isinstance(values, dict):
                raise CorpusError(
                    f"{where}: found {text[:40]!r}, expected one JSON object per line"
                )
            yield where, values


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise CorpusError(f"{name}: column names repeat: {names}")
            _uri_column(name, names)
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for number, values in enumerate(rows, start=1):
                yield f"{name}, row {number}", values
    except pa.ArrowException as error:
        raise CorpusError(f"{name} is not a valid Parquet file: {error}") from error


def _decoded(name: str, content: bytes, first_line: int = 1) -> str:
    """``content``, which begins at ``first_line``, as text without a byte order mark."""
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise CorpusError(f"{name}, line {line}: not valid UTF-8. Save it as UTF-8.") from error
