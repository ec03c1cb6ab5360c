"""Which checkpoint goes with a cache, its tokenizer, and what it says of its language model."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pipeline.model_folder import locate_checkpoint, read_json
from pipeline.positions import timestamp_text
from schemas.errors import ModelError
from schemas.manifest import EncoderIdentity, Manifest

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


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


def first_line(error: Exception) -> str:
    """What a foreign library says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with its chat template.

    Raises:
        ModelError: it is missing or cannot be loaded.
    """
    directory = locate_checkpoint(model, revision)
    if not _has_tokenizer(directory):
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


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


_same_vocabulary: WeakKeyDictionary[PreTrainedTokenizerBase, set[tuple[Path, int]]] = (
    WeakKeyDictionary()
)
"""Checkpoints a tokenizer was found to agree with, and the size of its vocabulary then."""


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Raise ModelError unless a tokenizer has every token of a checkpoint's own by the same id.

    Further tokens are fine. A folder without a tokenizer has nothing to compare with.
    """
    kept = _same_vocabulary.setdefault(tokenizer, set())
    key = directory, len(tokenizer)
    if key in kept or not _has_tokenizer(directory):
        return
    given = tokenizer.get_vocab()
    for token, token_id in load_tokenizer(str(directory)).get_vocab().items():
        if given.get(token) != token_id:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} has id {given.get(token)} for "
                f"{token!r}, that of the model's checkpoint {str(directory)!r} has {token_id}; "
                "give the tokenizer of the same checkpoint"
            )
    kept.add(key)


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
