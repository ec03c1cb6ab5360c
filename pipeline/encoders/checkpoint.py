"""A checkpoint's tokenizer and what its configuration says of its language model."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pipeline.model_folder import locate_checkpoint, read_json
from pipeline.positions import timestamp_text
from schemas.errors import ModelError

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


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
        raise ModelError(f"{directory}: the tokenizer cannot be loaded: {error}") from error


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


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the ids that enter the cache: timestamps and the video markers."""
    texts = [timestamp_text(value) for value in (0.0, 0.25, 1.5, 9.9, 12.3, 678.4, 3599.5)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
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
