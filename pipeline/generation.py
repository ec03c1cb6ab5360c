"""How a session generates: the settings given, and those it cannot honour refused by name."""

import copy
from typing import Any, cast

from transformers import GenerationConfig

from pipeline.prompt_arguments import as_count
from schemas.errors import PrefillError

_IDLE = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "watermarking_config": None,
}
"""Settings that look back at every token of the prompt, padding included: their value that is none.

``sequence_bias``, ``bad_words_ids`` and ``stop_strings`` look back by their own length: never to
the padding, which lies before the whole question.
"""

_ASSISTED = "assisted generation crops the KV cache, which a session never does"

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


def reads_prompt(settings: GenerationConfig, own: GenerationConfig) -> bool:
    """Whether padding inside the prompt would change an answer, other than by masked attention."""
    given = {name: getattr(settings, name) for name in _IDLE}
    used = {name: getattr(own, name) if v is None else v for name, v in given.items()}
    return any(value is not None and value != _IDLE[name] for name, value in used.items())


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
        "prompt_lookup_num_tokens": (None, _ASSISTED),
        "assistant_early_exit": (None, _ASSISTED),
        "is_assistant": (False, _ASSISTED),
        "use_mtp": (False, _ASSISTED),
        "token_healing": (False, "a session keeps the tokens of the question as they are"),
    }
    for name, (possible, reason) in reasons.items():
        value = getattr(given, name, None)  # not every release of transformers has them all
        if value is None:
            value = getattr(own, name, None)
        if value is not None and value != possible:
            raise PrefillError(f"{reason}, got {name} = {value!r}; {_INSTEAD}")
