"""Further columns: what a manifest's own columns may hold, and how their types join."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa

from schemas.video import Scalar

_PYTHON_TYPES: dict[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
}
"""Values of these types are Python's own; those of any other are ``pa.Scalar``."""


def type_of(value: Scalar) -> pa.DataType:
    """The type of a value in the index."""
    if isinstance(value, pa.Scalar):
        return value.type
    return pa.null() if value is None else _PYTHON_TYPES[type(value)]


def scalars(column: pa.Array) -> list[Scalar]:
    """The values of a column: Python's own where its type is text, bool, int64 or double."""
    if column.type in _PYTHON_TYPES.values():
        values: list[Scalar] = column.to_pylist()
        return values
    return [value if value.is_valid else None for value in column]


def column_of(values: Sequence[Scalar], kind: pa.DataType) -> pa.Array:
    """Values as one column of type ``kind``, which is that of all of them or joins theirs.

    Raises:
        pa.ArrowInvalid: a value does not fit.
    """
    if {type(value) for value in values} <= {type(None), str, bool} or kind == pa.int64():
        return pa.array(values, kind)
    arrays = [pa.repeat(_scalar(value), 1).cast(kind, safe=False) for value in values]
    return pa.concat_arrays(arrays) if arrays else pa.nulls(0, kind)


def _scalar(value: Scalar) -> pa.Scalar:
    return value if isinstance(value, pa.Scalar) else pa.scalar(value, type_of(value))


def repeats_a_key(value: Any, kind: pa.DataType) -> bool:
    """Whether a map in ``value``, as Python has values of type ``kind``, has one key twice."""
    t = pa.types
    if value is None or not t.is_nested(kind):
        return False
    if t.is_struct(kind):
        return any(repeats_a_key(value[field.name], field.type) for field in kind)
    if not t.is_map(kind):
        return any(repeats_a_key(inner, kind.value_type) for inner in value)
    keys = [key for key, _ in value]
    return len({repr(key) for key in keys}) < len(keys) or any(
        repeats_a_key(key, kind.key_type) or repeats_a_key(inner, kind.item_type)
        for key, inner in value
    )


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that the index gives a column of type ``kind``, None if it cannot hold one.

    Parquet has one type for all texts, one for all bytes and one for all lists, and no categories.
    Points in time have microseconds or nanoseconds. What DuckDB reads otherwise from Parquet than
    from memory is not held: durations, decimal numbers of more than 38 digits.
    """
    t = pa.types
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return stored_type(kind.value_type)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    if t.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= 38 else None
    if t.is_nested(kind):
        return _stored_nested(kind)
    exchanged = {
        pa.float16(): pa.float32(),
        pa.date64(): pa.date32(),
        pa.time32("s"): pa.time32("ms"),
    }
    if t.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    is_refused = (
        t.is_duration(kind) or t.is_interval(kind) or isinstance(kind, pa.BaseExtensionType)
    )
    return None if is_refused else exchanged.get(kind, kind)


def _stored_nested(kind: pa.DataType) -> pa.DataType | None:
    t = pa.types
    parts: list[pa.DataType | None]
    if t.is_struct(kind):
        parts = [stored_type(field.type) for field in kind]
        names = [field.name for field in kind]
        if None in parts or not names or len({name.lower() for name in names}) < len(names):
            return None
        return pa.struct(list(zip(names, parts, strict=True)))
    if t.is_map(kind):
        parts = [stored_type(kind.key_type), stored_type(kind.item_type)]
        return None if None in parts else pa.map_(*parts)
    inner = None if t.is_union(kind) else stored_type(kind.value_type)
    return None if inner is None else pa.list_(inner)


def joined_type(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """One type for values of several, None if there is none; no kinds at all are null."""
    return reduce(lambda one, other: one and common_type(one, other), kinds, pa.null())


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type for values of both: numbers join numbers, null joins all, None if there is none.

    Nanoseconds since 1970 end in 2262, so that points in time that have them join no others.
    Doubles round whole numbers beyond 2**53.
    """
    t = pa.types
    if one.equals(other) or t.is_null(other):
        return one
    if t.is_null(one):
        return other
    if t.is_nested(one) and one.id == other.id:
        return _common_nested(one, other)
    if _is_number(one) and _is_number(other):
        if t.is_floating(one) or t.is_floating(other):
            return pa.float64()
        is_beyond = pa.uint64() in (one, other) and not (
            t.is_unsigned_integer(one) and t.is_unsigned_integer(other)
        )
        return None if is_beyond else _unified(one, other)
    if t.is_timestamp(one) and t.is_timestamp(other) and "ns" in (one.unit, other.unit):
        return None
    is_of_a_kind = one.id == other.id and getattr(one, "tz", None) == getattr(other, "tz", None)
    return _unified(one, other) if is_of_a_kind or (t.is_time(one) and t.is_time(other)) else None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _common_nested(one: Any, other: Any) -> pa.DataType | None:
    t = pa.types
    if t.is_list(one):
        inner = common_type(one.value_type, other.value_type)
        return inner and pa.list_(inner)
    if t.is_map(one):
        parts = [
            common_type(one.key_type, other.key_type),
            common_type(one.item_type, other.item_type),
        ]
        return None if None in parts else pa.map_(*parts)
    fields = {field.name: field.type for field in one}
    for field in other:
        joined = common_type(fields.get(field.name, field.type), field.type)
        if joined is None:
            return None
        fields[field.name] = joined
    is_told_apart = len({name.lower() for name in fields}) == len(fields)
    return pa.struct(sorted(fields.items())) if is_told_apart else None


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Arrow's common type of two types of a kind, None if DuckDB does not know it."""
    schemas = [pa.schema([("", kind)]) for kind in (one, other)]
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None
    return None if pa.types.is_decimal256(unified) else unified
