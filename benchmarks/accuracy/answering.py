"""Answers of a model at many settings: several processes, and a file to go on from."""

import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from corpus import Corpus
from settings import Setting

from pipeline.cache import TokenCache, open_cache
from pipeline.encoders.language_model import load_language_model, load_matching_tokenizer
from pipeline.evaluation.answers import Manner, answer_video
from pipeline.evaluation.identity import digest_questions
from pipeline.evaluation.journal import Journal
from pipeline.evaluation.questions import Question
from pipeline.evaluation.records import Answered
from pipeline.evaluation.scoring import is_right
from pipeline.session import Session

MANNER = Manner(max_new_tokens=3, batch_size=32)
BLIND = "words alone"


class _Answerer:
    """One process: the model and the cache of all tokens."""

    def __init__(self, cache: Path, model: Path) -> None:
        torch.set_num_threads(1)
        self._cache: TokenCache = open_cache(cache)
        encoder = self._cache.manifest.encoder
        self._model = load_language_model(str(model), encoder, device="cpu")
        self._tokenizer = load_matching_tokenizer(str(model), encoder)

    def answer(self, asked: Sequence[tuple[Setting, Sequence[Question]]]) -> list[Answered]:
        """All questions about one video."""
        whole = self._cache.load(asked[0][1][0].video_id)
        answers = []
        for setting, questions in asked:
            video = setting.read(whole, self._tokenizer)
            session = Session(self._model, self._tokenizer, video)
            answers += answer_video(session, video, questions, setting=setting.name, manner=MANNER)
        return answers


_answerer: _Answerer


def _start(cache: Path, model: Path) -> None:
    global _answerer
    _answerer = _Answerer(cache, model)


def _answer(asked: Sequence[tuple[Setting, Sequence[Question]]]) -> list[Answered]:
    return _answerer.answer(asked)


def answer_all(
    corpus: Corpus, settings: Sequence[Setting], *, processes: int
) -> list[list[Answered]]:
    """For each setting the answers in the order of the corpus's questions."""
    by_video: dict[str, list[Question]] = defaultdict(list)
    for question in corpus.questions:
        by_video[question.video_id].append(question)
    header = {
        "questions": digest_questions(corpus.questions),
        "cache": corpus.whole.fingerprint,
    }
    with Journal(corpus.work, header) as journal:
        todo = []
        for asked in by_video.values():
            open_settings = [
                (setting, new)
                for setting in settings
                if (new := [q for q in asked if not journal.find(setting.name, q.question_id)])
            ]
            if open_settings:
                todo.append(open_settings)
        place = Path(corpus.whole.storage.location)
        started = time.monotonic()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            processes, mp_context=context, initializer=_start, initargs=(place, corpus.model)
        ) as pool:
            for number, answers in enumerate(pool.map(_answer, todo), 1):
                journal.add(answers)
                left = (time.monotonic() - started) / number * (len(todo) - number)
                told = f"\r{number}/{len(todo)} videos, {left / 60:.1f} min left "
                print(told, end="", file=sys.stderr, flush=True)
        return [
            [journal.answer(setting.name, q.question_id) for q in corpus.questions]
            for setting in settings
        ]


def blind_answers(corpus: Corpus) -> list[Answered]:
    """The likeliest answer to each question for one who has not seen the video."""
    answers = []
    for question in corpus.questions:
        answer = str(question.columns["blind_answer"])
        answers.append(
            Answered(
                question_id=question.question_id,
                setting=BLIND,
                video_id=question.video_id,
                video_key="",
                answer=answer,
                is_right=is_right(question, answer),
                num_tokens=0,
                tokens_before=corpus.whole.row(question.video_id).tokens_before or 0,
            )
        )
    return answers
