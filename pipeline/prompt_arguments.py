"""What people give for videos, a tokenizer and questions: taken as meant, or refused in a line."""

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from pipeline.cache import TokenCache
from pipeline.store.video import CachedVideo
from schemas.errors import PrefillError

ORDERS = (
    "Session(model, tokenizer, video), prefill(videos, tokenizer, question) or "
    "video.prefill(tokenizer, question)"
)


def as_videos(given: Any) -> list[CachedVideo]:
    """One loaded video or several.

    Raises:
        PrefillError: none, or something else among them.
    """
    is_several = isinstance(given, Sequence | Iterator) and not isinstance(given, str | bytes)
    videos = [_as_video(each) for each in given] if is_several else [_as_video(given)]
    if not videos:
        raise PrefillError("expected at least one video, got an empty list")
    return videos


def _as_video(given: Any) -> CachedVideo:
    if isinstance(given, CachedVideo):
        return given
    if isinstance(given, TokenCache):
        raise PrefillError(f"{given!r} is a whole cache; load a video of it: cache.load(video_id)")
    if isinstance(given, str):
        raise PrefillError(
            f"the text {given!r} is no loaded video; load it from a cache: "
            "tokenreel.open(cache).load(video_id)"
        )
    raise PrefillError(
        f"expected a loaded video or a list of them, got {_described(given)}; the order is that of "
        f"{ORDERS}"
    )


def as_tokenizer(given: Any) -> PreTrainedTokenizerBase:
    """A tokenizer, or that of a processor.

    Raises:
        PrefillError: something else.
    """
    found = getattr(given, "tokenizer", None) if isinstance(given, ProcessorMixin) else given
    if not isinstance(found, PreTrainedTokenizerBase):
        raise PrefillError(
            f"expected the tokenizer of the model's checkpoint, got {_described(given)}; load it "
            f"with AutoTokenizer.from_pretrained, and give it in the order of {ORDERS}"
        )
    return found


def check_texts(question: Any, system: Any = None) -> None:
    """Raise PrefillError unless the question is text, and the system text too, where there is one.

    Texts must be such as UTF-8 can write.
    """
    _check_text(question, "the question")
    if system is not None:
        _check_text(system, "the system text")


def as_questions(given: Any) -> list[str]:
    """A list of questions.

    Raises:
        PrefillError: one text, no list, or one of them that is no text.
    """
    if isinstance(given, str):
        raise PrefillError("expected a list of questions, got one text; use ask, or a list")
    try:
        if isinstance(given, bytes | Mapping | Set):
            raise TypeError("its order is not one of questions")
        questions = list(given)
    except TypeError as error:
        raise PrefillError(
            f"expected a list of questions, each of them text; got {_told(given)}"
        ) from error
    for question in questions:
        check_texts(question)
    return questions


def as_name(given: Any) -> str | None:
    """The name or folder of a checkpoint, None where none is given.

    Raises:
        PrefillError: anything else.
    """
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise PrefillError(
            f"checkpoint = {given!r} is not possible: expected a local directory or a hub id"
        )
    return str(os.fspath(given))


def as_count(given: Any, name: str) -> int:
    """A whole number of at least 1, of Python or of numpy.

    Raises:
        PrefillError: anything else.
    """
    is_whole = type(given) is not bool and isinstance(given, Integral)
    if not is_whole or given < 1:
        raise PrefillError(
            f"{name} = {given!r} is not possible: expected a whole number, at least 1"
        )
    return int(given)


def _check_text(given: Any, what: str) -> None:
    if not isinstance(given, str):
        raise PrefillError(f"{what} must be text, got {_told(given)}")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise PrefillError(
            f"{what} holds {given[error.start]!r}, half of a character that UTF-8 cannot write; "
            "decode its bytes anew"
        ) from error


def _told(given: Any) -> str:
    """What was given in place of a text, and what to do."""
    if _is_chat(given):
        return (
            "chat messages, which are not taken yet: give the text of the question, and a system "
            "text as system=..."
        )
    if isinstance(given, bytes):
        return "bytes; decode them"
    if isinstance(given, list | tuple):
        return (
            f"a {type(given).__name__} of {len(given)}; a prompt holds one question: give one "
            "text, or ask several with Session.ask_many"
        )
    return f"{_described(given)}; give one text"


def _is_chat(given: Any) -> bool:
    """Whether these are messages in the form of transformers: dicts with a role, or parts."""
    if isinstance(given, Mapping):
        return "role" in given or "content" in given or "messages" in given or "type" in given
    return isinstance(given, list | tuple) and any(map(_is_chat, given))


def _described(given: Any) -> str:
    if given is None:
        return "None"
    if isinstance(given, str):
        return f"the text {given!r}"
    return f"a value of type {type(given).__name__}"
