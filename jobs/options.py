"""Flags that several verbs share, and how they become a configuration."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from jobs.render import FORMATS
from schemas.config import DECODERS, DTYPES, RUNNERS, BuildConfig
from schemas.config_file import read_config
from schemas.errors import ConfigError
from schemas.fusion import METHODS, FusionMethod
from schemas.tokens import ENCODINGS

Command = TypeVar("Command", bound=Callable[..., Any])


class NumberOrFraction(click.ParamType[int | float]):
    """``512`` is a count, ``0.33`` a fraction."""

    name = "N|FRACTION"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | float:
        try:
            return value if not isinstance(value, str) else int(value)
        except ValueError:
            pass
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor a fraction", param, ctx)


class CacheLocation(click.ParamType[str]):
    """A folder, or the URL of one in an object store."""

    name = "CACHE"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        text = str(value)
        if "://" not in text and os.path.isfile(text):  # noqa: PTH113 - false too for what is no path
            self.fail(f"{text!r} is a file; expected a folder, s3://... or gs://...", param, ctx)
        return text


def build_options(command: Command) -> Command:
    """The flags that ``plan`` and ``build`` share; flag > --config file > checkpoint > default."""
    flags = [
        click.argument("corpus", nargs=-1, required=True),
        click.option(
            "--out",
            "location",
            required=True,
            type=CacheLocation(),
            help="The cache: a folder, s3://bucket/prefix or gs://bucket/prefix.",
        ),
        click.option("--model", help="Checkpoint directory or hub id."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="TOML file with further settings (docs/configuration.md).",
        ),
        click.option(
            "--fusion",
            type=click.Choice(tuple(METHODS)),
            help="How tokens are fused: `tokenreel methods` tells them apart.  [default: ttf]",
        ),
        click.option(
            "--threshold",
            type=float,
            help="Cosine above which a token is fused.  [default: the method's own, ttf 0.70]",
        ),
        click.option(
            "--window", type=int, help="Side of the searched square: 1, 3, 5 or 7.  [default: 3]"
        ),
        click.option(
            "--budget",
            type=NumberOrFraction(),
            help="Keep exactly N tokens, or a fraction of them.",
        ),
        click.option(
            "--fps",
            type=float,
            help="Frames sampled per second.  [default: the checkpoint's own, else 2]",
        ),
        click.option(
            "--num-frames", type=int, help="Frames sampled of every video, in place of a rate."
        ),
        click.option(
            "--max-frames",
            type=int,
            help="Frames sampled at most.  [default: the checkpoint's own, else 768]",
        ),
        click.option("--decoder", type=click.Choice(DECODERS), help="[default: auto]"),
        click.option(
            "--runner", type=click.Choice(RUNNERS), help="Where it runs.  [default: local]"
        ),
        click.option("--address", help="Ray cluster to join; without it Ray runs on this machine."),
        click.option("--workers", type=int, help="Ray workers.  [default: 1]"),
        click.option(
            "--cpus-per-worker", type=float, help="CPUs that Ray sets aside for each.  [default: 1]"
        ),
        click.option(
            "--gpus-per-worker",
            type=float,
            help="GPUs, or a fraction of one, for each.  [default: 1 where there are any]",
        ),
        click.option("--device", help="cpu, cuda, cuda:1 ...  [default: auto]"),
        click.option(
            "--dtype", type=click.Choice(DTYPES), help="Type the encoder runs in.  [default: auto]"
        ),
        click.option(
            "--encoding",
            type=click.Choice(ENCODINGS),
            help="How features are stored: as they are; compressed, exact; one byte per value, "
            "rounded.  [default: none]",
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Process at most N videos."),
        click.option("--retry-failed", is_flag=True, help="Try videos again that failed before."),
        click.option(
            "--max-failures",
            type=NumberOrFraction(),
            help="Stop after more failures than this.",
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def format_option(default: str) -> Callable[[Command], Command]:
    """``--format table|json|csv``."""
    return click.option(
        "--format", "style", type=click.Choice(FORMATS), default=default, show_default=True
    )


def resolve_config(config_file: Path | None, flags: dict[str, Any]) -> BuildConfig:
    """Flags over file over defaults; what the checkpoint says is left open."""
    config = read_config(config_file) if config_file else BuildConfig()
    if flags["fps"] is not None and flags["num_frames"] is not None:
        raise click.UsageError("--fps and --num-frames exclude each other: leave one out.")
    sections = {
        "encoder": {"model": "model", "device": "device", "dtype": "dtype"},
        "fusion": {
            "fusion": "method",
            "threshold": "threshold",
            "window": "window",
            "budget": "budget",
        },
        "sampling": {"fps": "fps", "num_frames": "num_frames", "max_frames": "max_frames"},
        "decode": {"decoder": "decoder"},
        "store": {"encoding": "encoding"},
        "run": {
            "runner": "runner",
            "address": "address",
            "workers": "workers",
            "cpus_per_worker": "cpus_per_worker",
            "gpus_per_worker": "gpus_per_worker",
            "max_failures": "max_failures",
        },
    }
    origins = dict(config.origins)
    for section, names in sections.items():
        given = {field: flags[flag] for flag, field in names.items()}
        origins |= {f"{section}.{key}": "flag" for key, v in given.items() if v is not None}
        config = config.override(section, **given)
    config = replace(config, origins=origins)
    require_window(config.fusion.abilities, flags["window"])
    return config


def require_window(method: FusionMethod, window: int | None) -> None:
    """Raise ConfigError when --window is given to a fusion method that has none."""
    if window is not None and not method.uses_window:
        able = ", ".join(each.name for each in METHODS.values() if each.uses_window)
        raise ConfigError(
            f"fusion method {method.name!r} has no use for --window. Leave it out, or choose one "
            f"of: {able}."
        )
