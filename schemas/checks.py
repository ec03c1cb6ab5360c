"""Checks that settings share."""

from numbers import Integral, Real
from typing import Any

from schemas.errors import ConfigError


def require(holds: bool, where: str, value: object, expected: str) -> None:
    """Raise ConfigError unless ``holds``."""
    if not holds:
        raise ConfigError(f"{where} = {value!r} is not possible: expected {expected}")


def plain_number(value: Any) -> Any:
    """A number of any kind, numpy's among them, as Python's int or float; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def make_floats(record: Any, *names: str) -> None:
    """Numbers given for floats become floats: 2 and 2.0 are one configuration."""
    for name in names:
        value = plain_number(getattr(record, name))
        object.__setattr__(record, name, float(value) if type(value) is int else value)
