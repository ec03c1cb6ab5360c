"""Checks that settings share."""

from typing import Any

from schemas.errors import ConfigError


def require(holds: bool, where: str, value: object, expected: str) -> None:
    """Raise ConfigError unless ``holds``."""
    if not holds:
        raise ConfigError(f"{where} = {value!r} is not possible: expected {expected}")


def make_floats(record: Any, *names: str) -> None:
    """Whole numbers given for floats become floats: 2 and 2.0 are one configuration."""
    for name in names:
        value = getattr(record, name)
        if type(value) is int:
            object.__setattr__(record, name, float(value))
