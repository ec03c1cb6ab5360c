"""A checkpoint on disk: where it is, what it is, and how it wants its videos prepared."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pipeline.positions import timestamp_text
from schemas.config import PreprocessConfig
from schemas.errors import ConfigError, ModelError
from schemas.grid import PatchGeometry
from schemas.manifest import EncoderIdentity, Manifest, ResolvedPreprocess

_PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")

_CLASS_DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_video_tokens": 768,
}
"""Defaults of ``Qwen3VLVideoProcessor`` for what a checkpoint leaves out."""

_FIXED = {"resample": 3, "do_resize": True, "do_rescale": True, "do_normalize": True}
"""Settings this pipeline implements in one way only."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The model that answers: its name, its revision on the hub, and where it lies."""

    name: str
    revision: str | None
    directory: Path


def find_checkpoint(manifest: Manifest, model: str | None, *, where: str) -> Checkpoint:
    """The checkpoint to use with a cache: ``model``, or the one that its manifest names.

    Args:
        manifest: of the cache.
        model: local directory or hub id.
        where: the cache, for messages.

    Raises:
        ConfigError: neither says.
        ModelError: it cannot be found.
    """
    name, revision = manifest.checkpoint(model, where=where)
    try:
        return Checkpoint(name, revision, locate_checkpoint(name, revision))
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(
            f"{error}; {where} names it as the model that made it: where it has moved, give its "
            "place with --model"
        ) from error


def locate_checkpoint(model: str, revision: str | None = None) -> Path:
    """The local directory of a checkpoint; a hub id is downloaded once into the hub's cache.

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
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the caller
        raise ModelError(
            f"model {model!r} is no local directory and the hub does not give it: "
            f"{first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """What a foreign library says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of a checkpoint.

    Raises:
        ModelError: missing, unreadable, or not an object.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"checkpoint file {path} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise ModelError(f"checkpoint file {path} must hold a JSON object, found {type(body)}")
    return body


def resolve_preprocess(
    directory: Path, patches: PatchGeometry, overrides: PreprocessConfig
) -> ResolvedPreprocess:
    """The video processor's settings of a checkpoint with the build's overrides applied.

    Read in transformers' own order: nested ``processor_config.json``, then
    ``video_preprocessor_config.json``, then ``preprocessor_config.json``, then class defaults.

    Raises:
        ModelError: settings this pipeline does not implement, or that contradict the encoder.
    """
    found = {**_CLASS_DEFAULTS, **_processor_settings(directory)}
    for name, expected in _FIXED.items():
        if found.get(name, expected) not in (expected, None):
            raise ModelError(
                f"{directory}: the video processor has {name} = {found[name]!r}; only {expected!r} "
                "is supported"
            )
    geometry = {
        "patch_size": patches.patch_size,
        "temporal_patch_size": patches.temporal_patch_size,
        "merge_size": patches.spatial_merge_size,
    }
    for name, expected in geometry.items():
        if found.get(name, expected) != expected:
            raise ModelError(
                f"{directory}: the video processor has {name} = {found[name]!r}, the vision "
                f"encoder {expected!r}; the checkpoint contradicts itself"
            )
    size = found["size"]
    low = overrides.min_pixels or size["shortest_edge"]
    high = overrides.max_pixels or size["longest_edge"]
    if low > high:
        raise ConfigError(
            f"preprocess.min_pixels = {low} is above preprocess.max_pixels = {high}; expected a "
            "smaller or equal number"
        )
    return ResolvedPreprocess(
        min_pixels=low,
        max_pixels=high,
        cap_pixels_per_frame=overrides.cap_pixels_per_frame,
        max_video_tokens=found["max_video_tokens"],
        image_mean=tuple(found["image_mean"]),
        image_std=tuple(found["image_std"]),
    )


def _processor_settings(directory: Path) -> dict[str, Any]:
    nested = directory / "processor_config.json"
    if nested.is_file() and isinstance(settings := read_json(nested).get("video_processor"), dict):
        return settings
    for name in _PROCESSOR_FILES:
        if (directory / name).is_file():
            return read_json(directory / name)
    return {}


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with its chat template.

    Raises:
        ModelError: it is missing or cannot be loaded.
    """
    directory = locate_checkpoint(model, revision)
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{directory} holds no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)}, so "
            "fetch the whole checkpoint"
        )
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(directory))
    except Exception as error:  # any failure of a foreign loader means the same to the caller
        raise ModelError(
            f"{directory}: the tokenizer cannot be loaded: {first_line(error)}"
        ) from error


def check_markers(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError unless the tokenizer knows the video markers by the model's own ids."""
    config = read_json(directory / "config.json")
    for name in ("vision_start", "vision_end", "video"):
        marker = "<|video_pad|>" if name == "video" else f"<|{name}|>"
        found, expected = tokenizer.convert_tokens_to_ids(marker), config.get(f"{name}_token_id")
        if found != expected:
            raise ModelError(
                f"{directory}: the tokenizer has id {found} for {marker}, config.json {expected}; "
                "tokenizer.json is missing or belongs to another model"
            )


def most_positions(directory: Path) -> int | None:
    """How many positions a checkpoint's language model is made for, where its config says so."""
    text = read_json(directory / "config.json").get("text_config")
    return text.get("max_position_embeddings") if isinstance(text, dict) else None


_tokenizer_digests: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, str]] = WeakKeyDictionary()


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, encoder: EncoderIdentity, name: str
) -> None:
    """Raise ModelError unless it writes timestamps and video markers as a cache has them.

    The digest is kept for each tokenizer while its vocabulary has the same size.
    """
    kept = _tokenizer_digests.setdefault(tokenizer, {})
    size = len(tokenizer)
    if size not in kept:
        kept[size] = digest_tokenizer(tokenizer)
    if kept[size] != encoder.tokenizer_digest:
        raise ModelError(
            f"{name}: its tokenizer writes timestamps or video markers with other ids than this "
            "cache; give the checkpoint the cache was built with"
        )


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the ids that enter the cache: timestamps and the video markers."""
    texts = [timestamp_text(value) for value in (0.0, 0.25, 1.5, 9.9, 12.3, 678.4, 3599.5)]
    ids = list(tokenizer(texts, add_special_tokens=False)["input_ids"])
    markers = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    ids.append([tokenizer.convert_tokens_to_ids(marker) for marker in markers])
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' load reports and bars off the terminal; errors still raise."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
