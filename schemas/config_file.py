"""A build's configuration as a TOML file: read, checked key by key, and written."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from schemas.config import BuildConfig
from schemas.errors import ConfigError


def read_config(path: str | Path) -> BuildConfig:
    """Read a TOML file; errors name the file.

    Raises:
        ConfigError: no such file, not TOML, or as ``parse_config``.
    """
    try:
        mapping = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from error
    return parse_config(mapping, source=str(path))


def parse_config(mapping: Mapping[str, Any], *, source: str = "config") -> BuildConfig:
    """Build a configuration from ``{section: {key: value}}``.

    Raises:
        ConfigError: an unknown section or key (with the nearest known one), or a bad value.
    """
    sections = _sections()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, body in mapping.items():
        if name not in sections:
            raise ConfigError(_unknown(f"{source}: section [{name}]", name, list(sections)))
        if not isinstance(body, Mapping):
            raise ConfigError(f"{source}: {name} must be a section [{name}], got {body!r}")
        checked = _checked_keys(sections[name], body, f"{source}: {name}")
        origins |= {f"{name}.{key}": "toml" for key in checked}
        try:
            values[name] = sections[name](**checked)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
    return BuildConfig(**values, origins=origins)


def format_config(config: BuildConfig) -> str:
    """The configuration as a TOML file.

    Settings that are None stand as comments; so does where the others come from, if it is known.
    """
    lines = []
    for name in _sections():
        lines.append(f"[{name}]")
        for key, value in dataclasses.asdict(getattr(config, name)).items():
            # Numbers, booleans and strings read the same in TOML.
            text = json.dumps(value, ensure_ascii=False)
            origin = config.origins.get(f"{name}.{key}")
            said = f"{key} = {text}" + (f"  # {origin}" if origin else "")
            lines.append(said if value is not None else f"# {key} = (not set)")
        lines.append("")
    return "\n".join(lines)


def _sections() -> dict[str, type]:
    """The classes of a configuration's sections by their names."""
    sections = get_type_hints(BuildConfig)
    del sections["origins"]
    return sections


def _checked_keys(section_type: type, body: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = get_type_hints(section_type)
    values: dict[str, Any] = {}
    for key, value in body.items():
        if key not in hints:
            raise ConfigError(_unknown(f"{where}.{key}", key, list(hints)))
        hint = hints[key]
        allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if type(value) is int and float in allowed and int not in allowed:
            value = float(value)
        if type(value) not in allowed:
            names = " or ".join(t.__name__ for t in allowed if t is not type(None))
            raise ConfigError(f"{where}.{key} = {value!r} has the wrong type: expected {names}")
        values[key] = value
    return values


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{what} is not known; {hint}"
