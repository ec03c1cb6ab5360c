"""How a session generates: the settings given, and those it cannot honour refused by name."""

import copy
from typing import Any, cast

from transformers import GenerationConfig

from pipeline.prompt_arguments import as_count
from schemas.errors import PrefillError

_INSTEAD = "use model.generate(**video.prefill(...)) for that"


def settle(
    given: GenerationConfig | None, own: GenerationConfig, *, max_new_tokens: int, pad_id: int
) -> GenerationConfig:
    """The settings of one answer: greedy where nothing is given.

    Args:
        given: by whoever asks.
        own: the model's, which fill what ``given`` leaves open, as in transformers.
        max_new_tokens: where ``given`` does not say.
        pad_id: likewise.

    Raises:
        PrefillError: a setting that a session cannot honour.
    """
    max_new_tokens = as_count(max_new_tokens, "max_new_tokens")
    if given is not None and not isinstance(given, GenerationConfig):
        raise PrefillError(
            f"generation_config is of type {type(given).__name__}; give a transformers "
            "GenerationConfig"
        )
    settings: Any = copy.deepcopy(given) or GenerationConfig(do_sample=False)  # type: ignore[no-untyped-call]
    _refuse_lengths_of_the_whole(settings)
    _refuse_what_a_session_cannot(settings, own)
    defaults = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": pad_id,
        "eos_token_id": own.eos_token_id,
        "num_beams": own.num_beams,
    }
    for name, value in defaults.items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    return cast(GenerationConfig, settings)


def _refuse_lengths_of_the_whole(given: Any) -> None:
    """Prompts of a batch are padded: a length that counts the prompt is not one of the answer."""
    for name in ("max_length", "min_length"):
        value, by_new_tokens = getattr(given, name), f"{name[:3]}_new_tokens"
        if value and getattr(given, by_new_tokens) is None:
            raise PrefillError(
                f"{name} = {value} counts the tokens of the video and the question; give "
                f"{by_new_tokens}, which counts those of the answer"
            )


def _refuse_what_a_session_cannot(given: Any, own: Any) -> None:
    reasons = {
        "cache_implementation": (None, "a session keeps a KV cache of its own"),
        "use_cache": (True, "a session answers from a KV cache"),
        "num_return_sequences": (1, "a session gives one answer per question"),
        "prompt_lookup_num_tokens": (None, "a session copies its KV cache and never crops it"),
    }
    for name, (possible, reason) in reasons.items():
        value = getattr(given, name)
        if value is None:
            value = getattr(own, name)
        if value is not None and value != possible:
            raise PrefillError(f"{reason}, got {name} = {value!r}; {_INSTEAD}")
