"""How much of each video is read, and its questions asked at every such reading."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.cache import TokenCache
from pipeline.evaluation.answers import Manner, answer_video
from pipeline.evaluation.questions import Question
from pipeline.evaluation.records import FULL, Answered
from pipeline.session import Session
from pipeline.store.video import CachedVideo
from schemas.errors import BudgetError, CacheCorruptError, CacheUnreachableError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TRIED = 3
"""Videos read to find out whether readings are possible."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One setting: all that is cached, a budget, or a threshold."""

    budget: float | int | None = None
    threshold: float | None = None

    @property
    def name(self) -> str:
        """As answers and tables have it."""
        if self.budget is not None:
            return f"budget={self.budget}"
        return FULL if self.threshold is None else f"threshold={self.threshold}"

    def load(self, cache: TokenCache, video_id: str) -> CachedVideo:
        """Read one video so.

        Raises:
            TokenreelError: as ``TokenCache.load``.
        """
        return cache.load(video_id, budget=self.budget, threshold=self.threshold)


def all_readings(
    budgets: Sequence[float | int] = (), thresholds: Sequence[float] = ()
) -> list[Reading]:
    """The full cache, then each budget and each threshold once, in the order given."""
    readings = [
        Reading(),
        *(Reading(budget=budget) for budget in budgets),
        *(Reading(threshold=threshold) for threshold in thresholds),
    ]
    return list({reading.name: reading for reading in readings}.values())


def check_readings(
    readings: Sequence[Reading], cache: TokenCache, questions: Sequence[Question]
) -> None:
    """Read one video at each reading, so that an impossible one is told before anything is asked.

    Videos that cannot be read say nothing about readings; of these at most ``MOST_TRIED`` are
    passed over.

    Raises:
        BudgetError: the cache cannot serve a budget or threshold.
        ConfigError: a budget out of range.
    """
    video_ids = dict.fromkeys(question.video_id for question in questions)
    for video_id in islice(video_ids, MOST_TRIED):
        try:
            for reading in readings:
                _load_or_name(reading, cache, video_id)
        except (CacheCorruptError, CacheUnreachableError):
            continue
        return


def _load_or_name(reading: Reading, cache: TokenCache, video_id: str) -> None:
    """Read one video; an error that the setting brings names it."""
    try:
        reading.load(cache, video_id)
    except (BudgetError, ConfigError) as error:
        raise type(error)(f"{reading.name} cannot be read of this cache: {error}") from error


def answer_readings(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    cache: TokenCache,
    video_id: str,
    asked: Mapping[Reading, Sequence[Question]],
    manner: Manner,
) -> list[Answered]:
    """Ask questions about one video at several readings.

    Readings that hold the same tokens get the same answers and are asked once.

    Args:
        model: with the tokenizer of its checkpoint; the one the cache was built with.
        tokenizer: its.
        cache: holds the video.
        video_id: of the cache.
        asked: the questions of each reading.
        manner: how they are asked.

    Raises:
        TokenreelError: the video cannot be read, or the questions cannot be asked.
    """
    answers: list[Answered] = []
    known: dict[tuple[str, str], Answered] = {}
    for reading, questions in asked.items():
        video = reading.load(cache, video_id)
        new = [each for each in questions if (video.selection, each.question_id) not in known]
        if new:
            session = Session(model, tokenizer, video)
            given = answer_video(session, video, new, setting=reading.name, manner=manner)
            known.update({(video.selection, answer.question_id): answer for answer in given})
        for question in questions:
            answer = known[video.selection, question.question_id]
            answers.append(dataclasses.replace(answer, setting=reading.name))
    return answers
