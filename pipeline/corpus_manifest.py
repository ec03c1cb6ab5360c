"""Rows of a corpus manifest: .csv, .jsonl or .parquet with ``video_id``, ``uri`` and more."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.columns import repeats_a_key, scalars, stored_type
from schemas.errors import CorpusError
from schemas.index import INDEX_SCHEMA
from schemas.video import Scalar

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})

_INT64 = range(-(2**63), 2**63)
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})")
_DECIMAL = re.compile(
    r"[+-]?(((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|inf(inity)?)", re.IGNORECASE
)
_URI_NAMES = ("uri", "path")
_MISSING = frozenset({"nan", "-nan", "na", "n/a", "#n/a", "<na>", "null", "none"})
"""What programs write for a missing value, in small letters."""

_PANDAS_INDEX = re.compile(r"__index_level_[0-9]+__")
"""Names that pandas gives to row numbers it stores."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row: ``where`` is the manifest and the line or row number, for messages."""

    where: str
    video_id: str
    uri: str
    extra: dict[str, Scalar] = field(default_factory=dict)


def read_manifest(path: Path, name: str) -> Iterator[ManifestRow]:
    """The rows of the manifest at ``path``, in order; only of a Parquet file few are in memory.

    Messages call it ``name``.

    Blanks round the fields of a CSV are dropped. Its values become int, float or bool where the
    whole column is written so, and None where they are empty or, unless among text, NA or nan;
    "007" and numbers too long for their type stay text. Parquet columns keep the type Parquet gives
    them (pandas' row numbers are left out), lists and objects in JSON become lists and structs.

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
    if isinstance(value, pa.Scalar) and repeats_a_key(value.as_py(), value.type):
        raise CorpusError(
            f"{where}: column {name!r} holds a map in which a key repeats, which SQL cannot read: "
            f"{value.as_py()!r}. Make its keys differ."
        )
    if value is None or isinstance(value, str | bool | float | pa.Scalar):
        return value
    if isinstance(value, int) and value in _INT64:
        return value
    raise CorpusError(
        f"{where}: column {name!r} holds {value!r}, which is no 64-bit whole number. Store it as "
        "text."
    )


def _read_csv(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = io.StringIO(_decoded(name, path.read_bytes()), newline="")
    reader = csv.reader(text, strict=True, skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if fields not in ([], [""]):
                rows.append((reader.line_num, fields))
    except csv.Error as error:
        raise CorpusError(
            f"{name}, line {reader.line_num}: not valid CSV: {error}. Quotes enclose a whole "
            "field, and no blank follows them."
        ) from error
    if not rows:
        raise CorpusError(f"{name} is empty, expected a first line with column names")
    _, names = rows.pop(0)
    if len(set(names)) != len(names):
        raise CorpusError(f"{name}, line 1: column names repeat: {names}")
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
        raise CorpusError(
            f"{name}, line 1: the columns are separated by {other[0]!r}. Save it with commas."
        )
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
    """One CSV column: of the first type in which all of it is written, None where empty.

    The usual words for a missing value are empty too, but for a column of text, where they may
    mean something else.
    """
    given = [text for text in texts if text.lower() not in ("", *_MISSING)]
    for is_written, convert in (
        (_is_truth, _truth),
        (_is_int64, int),
        (_DECIMAL.fullmatch, float),
    ):
        if all(map(is_written, given)):
            kept = frozenset(given)
            return [convert(text) if text in kept else None for text in texts]
    return [text or None for text in texts]


def _is_truth(text: str) -> bool:
    return text.lower() in ("true", "false")


def _truth(text: str) -> bool:
    return text.lower() == "true"


def _is_int64(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None and int(text) in _INT64


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = list(_json_objects(path, name))
    nested = {
        column: None
        for _, values in rows
        for column, value in values.items()
        if isinstance(value, dict | list)
    }
    for column in nested:
        _type_nested(name, column, rows)
    yield from rows


def _json_objects(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _type_nested(name: str, column: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Give the objects or lists in one column of a .jsonl manifest the type that fits them all."""
    own = [values for _, values in rows if column in values]
    try:
        array = pa.array([_without_empty_objects(values[column]) for values in own])
        kind = stored_type(array.type)
    except (pa.ArrowException, OverflowError, UnicodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"{name}: the values of column {column!r} are not of one form: {reason}. Give them "
            "one, or store them as text."
        ) from error
    if kind is None:
        raise CorpusError(_not_carried(name, column, array.type))
    for values, value in zip(own, scalars(array.cast(kind)), strict=True):
        values[column] = value


def _without_empty_objects(value: Any) -> Any:
    """``value`` with null for objects without keys, at any depth: Parquet cannot hold them."""
    if isinstance(value, dict):
        return {key: _without_empty_objects(inner) for key, inner in value.items()} or None
    return [_without_empty_objects(inner) for inner in value] if isinstance(value, list) else value


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            names = [n for n in file.schema_arrow.names if not _PANDAS_INDEX.fullmatch(n)]
            if len(set(names)) != len(names):
                raise CorpusError(f"{name}: column names repeat: {names}")
            _uri_column(name, names)
            schema = pa.schema([_carried(name, file.schema_arrow.field(n)) for n in names])
            number = 0
            for batch in file.iter_batches(columns=names):
                columns = [scalars(batch[n].cast(schema.field(n).type)) for n in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f"{name}, row {number}", dict(zip(names, values, strict=True))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{name} is not a valid Parquet file: {' '.join(str(error).split())}"
        ) from error


def _carried(name: str, field: pa.Field) -> pa.Field:
    kind = stored_type(field.type)
    if kind is None:
        raise CorpusError(_not_carried(name, field.name, field.type))
    return pa.field(field.name, kind)


def _not_carried(name: str, column: str, kind: pa.DataType) -> str:
    return (
        f"{name}: column {column!r} is of type {kind}, which the index cannot hold. Store it as a "
        "number or as text, or leave it out."
    )


def _decoded(name: str, content: bytes, first_line: int = 1) -> str:
    """``content``, which begins at ``first_line``, as text without a byte order mark."""
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise CorpusError(f"{name}, line {line}: not valid UTF-8. Save it as UTF-8.") from error
