"""What is kept of one answer."""

from dataclasses import dataclass

FULL = "full"
"""The setting that reads all that is cached."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One question asked of one reading of a video.

    Attributes:
        question_id: of the question.
        setting: how much was read, by its name.
        video_id: of the cache.
        video_key: the video's key; another one means other features.
        answer: a letter, or the text.
        is_right: whether it is the right one.
        num_tokens: visual tokens read.
        tokens_before: visual tokens before fusion.
    """

    question_id: str
    setting: str
    video_id: str
    video_key: str
    answer: str
    is_right: bool
    num_tokens: int
    tokens_before: int
