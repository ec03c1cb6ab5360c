"""A checkpoint's folder: where it is, and the JSON files in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from schemas.errors import ModelError

_ALL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")


def locate_checkpoint(
    model: str, revision: str | None = None, *, files: Sequence[str] = _ALL_FILES
) -> Path:
    """The local directory of a checkpoint; a hub id is downloaded once into the hub's cache.

    Args:
        model: local directory or hub id.
        revision: of a hub id.
        files: patterns of what is needed of a hub id, all of it by default.

    Raises:
        ModelError: neither a checkpoint directory nor a hub id that can be reached.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"model directory {model!r} has no config.json; expected a checkpoint folder as "
                "save_pretrained writes it"
            )
        return directory.resolve()
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelError(
            f"model {model!r} is neither an existing directory nor a hub id of the form owner/name"
        )
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the caller
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"model {model!r} is no local directory and the hub does not give it: {first_line}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of a checkpoint.

    Raises:
        ModelError: missing, unreadable, or not an object.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"checkpoint file {path} cannot be read: {error.strerror or error}; fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"checkpoint file {path} cannot be read: it is no JSON ({error}); fetch it again"
        ) from error
    if not isinstance(body, dict):
        raise ModelError(
            f"checkpoint file {path} must hold a JSON object, found a {type(body).__name__}; "
            "fetch it again"
        )
    return body
