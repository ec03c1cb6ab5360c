"""Answers to questions with options and to short ones, and what is kept of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.questions import Question
from pipeline.evaluation.records import FULL, Answered
from pipeline.evaluation.rows import require_unicode
from pipeline.evaluation.scoring import is_right
from pipeline.prefill import split_prompt
from pipeline.session import Session
from pipeline.store.video import CachedVideo
from schemas.errors import ConfigError, ModelError, PrefillError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Manner:
    """How questions are asked.

    Attributes:
        system: system text before the video.
        max_new_tokens: of a short answer.
        batch_size: questions asked at once; each holds a copy of the video's KV cache.
    """

    system: str | None = None
    max_new_tokens: int = 16
    batch_size: int = 8


DEFAULT_MANNER = Manner()


def answer_questions(
    session: Session,
    questions: Sequence[Question],
    manner: Manner = DEFAULT_MANNER,
) -> list[str]:
    """Answer questions about a session's video, in their order; its KV cache is computed once.

    With options the answer is the letter with the highest logit where the answer begins, the
    first one at a tie; without options it is generated, greedily.

    Args:
        session: of one video at one budget.
        questions: about this video.
        manner: how they are asked.

    Raises:
        ModelError: the tokenizer writes an option's letter with more than one token.
    """
    with_options = [question for question in questions if question.options]
    letters = iter(_choose(session, with_options, manner))
    texts = iter(
        session.ask_many(
            [question.prompt for question in questions if not question.options],
            system=manner.system,
            max_new_tokens=manner.max_new_tokens,
            batch_size=manner.batch_size,
        )
    )
    return [next(letters if question.options else texts) for question in questions]


def answer_video(
    session: Session,
    video: CachedVideo,
    questions: Sequence[Question],
    *,
    setting: str = FULL,
    manner: Manner = DEFAULT_MANNER,
) -> list[Answered]:
    """``answer_questions``, scored, with what was read of the video.

    Args:
        session: of ``video`` alone.
        video: as it was loaded, or as it was fused in memory.
        questions: about it.
        setting: name of this reading.
        manner: how they are asked.

    Raises:
        ModelError: as ``answer_questions``.
    """
    answers = answer_questions(session, questions, manner)
    return [
        Answered(
            question_id=question.question_id,
            setting=setting,
            video_id=video.video_id,
            video_key=video.key,
            answer=answer,
            is_right=is_right(question, answer),
            num_tokens=video.num_tokens,
            tokens_before=video.grid.num_tokens,
        )
        for question, answer in zip(questions, answers, strict=True)
    ]


def check_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    manner: Manner = DEFAULT_MANNER,
    *,
    most_positions: int | None = None,
) -> None:
    """Raise unless every question can be asked as it is written; needs no model.

    Args:
        tokenizer: of the model.
        questions: with or without options.
        manner: how they are asked.
        most_positions: that the model is made for; text alone that takes more is refused.

    Raises:
        PrefillError: text that is not Unicode, is too long or holds one of the model's markers,
            with the id of its question; a tokenizer without a chat template for videos.
    """
    split_prompt(tokenizer, "", num_videos=1)
    if manner.system is not None:
        _check_prompt(tokenizer, "", manner.system, "the system text")
    for question in questions:
        what = f"question {question.question_id!r} about video {question.video_id!r}"
        length = _check_prompt(tokenizer, question.prompt, manner.system, what)
        if most_positions is not None and length > most_positions:
            raise PrefillError(
                f"{what} cannot be asked: text alone takes {length} tokens, the model is made for "
                f"{most_positions}; shorten it"
            )


def _check_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, system: str | None, what: str
) -> int:
    """The number of tokens of its text."""
    try:
        require_unicode(f"{prompt}{system or ''}", "it")
        return sum(map(len, split_prompt(tokenizer, prompt, num_videos=1, system=system)))
    except (ConfigError, PrefillError) as error:
        raise PrefillError(f"{what} cannot be asked: {error}") from error


def letter_tokens(tokenizer: "PreTrainedTokenizerBase", letters: str) -> dict[str, int]:
    """The id of each letter's token.

    Raises:
        ModelError: a letter is not one token of its own.
    """
    found = {}
    for letter in letters:
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} writes the letter {letter!r} as the ids "
                f"{list(ids)}, and options are told apart by one token each; ask without options"
            )
        found[letter] = int(ids[0])
    return found


def _choose(session: Session, questions: Sequence[Question], manner: Manner) -> list[str]:
    """The letter with the highest logit for each question."""
    most = max((question.letters for question in questions), key=len, default="")
    tokens = letter_tokens(session.tokenizer, most)
    logits_QV = session.next_logits(
        [question.prompt for question in questions],
        system=manner.system,
        batch_size=manner.batch_size,
    )
    chosen = []
    for question, logits_V in zip(questions, logits_QV, strict=True):
        columns = [tokens[letter] for letter in question.letters]
        chosen.append(question.letters[int(logits_V[columns].argmax())])
    return chosen
