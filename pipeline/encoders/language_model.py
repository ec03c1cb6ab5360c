"""The whole model of a checkpoint, checked against the encoder that made a cache."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from pipeline.dtypes import TORCH_DTYPES
from pipeline.encoders.checkpoint import digest_tokenizer, load_tokenizer, quiet_loading
from pipeline.encoders.qwen3_vl import digest_tower, resolve_device
from pipeline.model_folder import locate_checkpoint, read_json
from schemas.errors import ModelError
from schemas.manifest import EncoderIdentity


def load_language_model(
    model: str, encoder: EncoderIdentity, *, device: str = "auto", revision: str | None = None
) -> Any:
    """Load a checkpoint for answering, in the type its cached tokens have.

    Args:
        model: local directory or hub id.
        encoder: of the cache's manifest.
        device: "auto" takes CUDA when there is any.
        revision: of a hub id.

    Raises:
        ModelError: the checkpoint cannot be loaded, is of another kind of model, or its vision
            weights are not those that made the cache.
    """
    directory = _locate(model, encoder, revision)
    try:
        with quiet_loading():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                directory, dtype=TORCH_DTYPES[encoder.dtype]
            )
    except Exception as error:  # any failure of a foreign loader means the same to the caller
        raise ModelError(
            f"{directory}: the model cannot be loaded: {error}\nExpected the checkpoint the cache "
            "was built with, all its files whole; fetch it again"
        ) from error
    tower = getattr(getattr(loaded, "model", None), "visual", None)
    if tower is None or digest_tower(tower) != encoder.weights_digest:
        raise ModelError(
            f"{directory}: its vision weights are not those that made this cache "
            f"({encoder.model_type}, digest {encoder.weights_digest[:12]}...); give the checkpoint "
            "the cache was built with"
        )
    return loaded.eval().to(resolve_device(device))


def load_matching_tokenizer(
    model: str, encoder: EncoderIdentity, *, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, if it writes timestamps and markers as the cache has them.

    Raises:
        ModelError: it cannot be loaded, or it is another one, or of another kind of model.
    """
    tokenizer = load_tokenizer(str(_locate(model, encoder, revision)))
    if digest_tokenizer(tokenizer) != encoder.tokenizer_digest:
        raise ModelError(
            f"{model}: its tokenizer writes timestamps or video markers with other ids than this "
            "cache; give the checkpoint the cache was built with"
        )
    return tokenizer


def _locate(model: str, encoder: EncoderIdentity, revision: str | None) -> Path:
    """The directory of a checkpoint of the kind that made the cache."""
    directory = locate_checkpoint(model, revision)
    model_type = read_json(directory / "config.json").get("model_type")
    if model_type != encoder.model_type:
        raise ModelError(
            f"{directory}: config.json says model_type {model_type!r}, this cache was made by a "
            f"{encoder.model_type!r}; give the checkpoint the cache was built with"
        )
    return directory
