"""Which questions are still to be asked."""

from collections.abc import Mapping, Sequence

from pipeline.cache import TokenCache
from pipeline.evaluation.journal import Journal
from pipeline.evaluation.questions import Question
from pipeline.evaluation.readings import Reading

Todo = Mapping[str, Mapping[Reading, Sequence[Question]]]
"""Questions without an answer, by video and reading."""


def unanswered(
    questions: Sequence[Question],
    readings: Sequence[Reading],
    cache: TokenCache,
    journal: Journal,
) -> Todo:
    """The questions to ask, by video and reading; a video encoded anew is asked again."""
    todo: dict[str, dict[Reading, list[Question]]] = {}
    keys = {each.video_id: cache.row(each.video_id).key for each in questions}
    for question in questions:
        for reading in readings:
            found = journal.find(reading.name, question.question_id)
            if found is None or found.video_key != keys[question.video_id]:
                by_reading = todo.setdefault(question.video_id, {})
                by_reading.setdefault(reading, []).append(question)
    return todo


def distinct_questions(todo: Todo) -> list[Question]:
    """Every question that is to be asked, once."""
    return list(
        {
            question.question_id: question
            for by_reading in todo.values()
            for questions in by_reading.values()
            for question in questions
        }.values()
    )
