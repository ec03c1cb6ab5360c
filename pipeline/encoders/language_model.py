"""The whole model of a checkpoint, checked against the encoder that made a cache."""

from typing import Any

from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from pipeline.dtypes import TORCH_DTYPES
from pipeline.encoders.checkpoint import (
    check_tokenizer,
    first_line,
    load_tokenizer,
    quiet_loading,
)
from pipeline.encoders.origin import require_model_type, require_vision_files
from pipeline.encoders.qwen3_vl import resolve_device
from pipeline.model_folder import locate_checkpoint
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
            weights are not those that made the cache; the latter before the rest is loaded.
    """
    directory = locate_checkpoint(model, revision)
    require_vision_files(directory, encoder)
    try:
        with quiet_loading():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                directory, dtype=TORCH_DTYPES[encoder.dtype]
            )
    except Exception as error:  # any failure of a foreign loader means the same to the caller
        raise ModelError(
            f"{directory}: the model cannot be loaded: {first_line(error)}; expected the "
            "checkpoint the cache was built with, all its files whole; fetch it again"
        ) from error
    return loaded.eval().to(resolve_device(device))


def load_matching_tokenizer(
    model: str, encoder: EncoderIdentity, *, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, if it writes timestamps and markers as the cache has them.

    Raises:
        ModelError: it cannot be loaded, or it is another one, or of another kind of model.
    """
    directory = locate_checkpoint(model, revision)
    require_model_type(directory, encoder)
    tokenizer = load_tokenizer(str(directory))
    check_tokenizer(tokenizer, encoder, model)
    return tokenizer
