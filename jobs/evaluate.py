"""Questions with known answers, asked of a cache at several budgets; a run that stops goes on."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.eval_progress import EvalProgress
from pipeline.cache import TokenCache, open_cache
from pipeline.encoders.checkpoint import Checkpoint, find_checkpoint, most_positions
from pipeline.encoders.language_model import load_language_model, load_matching_tokenizer
from pipeline.encoders.qwen3_vl import resolve_device
from pipeline.evaluation.answers import DEFAULT_MANNER, Manner, check_prompts
from pipeline.evaluation.identity import digest_checkpoint, digest_questions
from pipeline.evaluation.intervals import CONFIDENCE, RESAMPLES
from pipeline.evaluation.journal import Journal
from pipeline.evaluation.naming import match_videos
from pipeline.evaluation.questions import Question, read_questions
from pipeline.evaluation.readings import all_readings, answer_readings, check_readings
from pipeline.evaluation.records import Answered
from pipeline.evaluation.report import EvalReport, check_columns, summarize
from pipeline.evaluation.scoring import is_right
from pipeline.evaluation.todo import Todo, distinct_questions, unanswered
from pipeline.evaluation.unread import UnreadVideos
from pipeline.storage import Location
from schemas.errors import ConfigError, VideoNotCachedError

RESULTS_NAME = "results.json"

SHOWN = 3
"""Missing videos that a message names."""

SEED = 0
"""Of the bootstrap."""


def evaluate(
    files: Sequence[Path],
    location: Location,
    *,
    model: str | None = None,
    budgets: Sequence[float | int] = (),
    thresholds: Sequence[float] = (),
    by: Sequence[str] = (),
    layout: str = "auto",
    skip_missing: bool = False,
    out: Path | None = None,
    device: str = "auto",
    manner: Manner = DEFAULT_MANNER,
    progress_style: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> EvalReport:
    """Ask every question of the full cache and of each budget and threshold, and score.

    Answers go to ``answers.jsonl`` in ``out`` after each video; with the same arguments a later
    call goes on from them, and further budgets and thresholds join them. ``results.json`` beside
    it holds the report.

    Args:
        files: questions, see ``read_questions``.
        location: of the cache, as ``open_cache`` takes it.
        model: checkpoint; the one named by the cache's manifest by default.
        budgets: counts or fractions of tokens, each a setting.
        thresholds: lower thresholds than the build's, each a setting.
        by: columns of the questions to break results down by.
        layout: of the files, or "auto".
        skip_missing: leave questions out whose video is not in the cache.
        out: folder of the answers; for one file by default the one named like it, ending in
            ``.eval``, beside it.
        device: "auto" takes CUDA when there is any.
        manner: how questions are asked.
        progress_style: "auto", "json" or "none".
        say: takes remarks.

    Raises:
        ConfigError: questions, columns or an ``out`` that cannot be used; the message says why.
        VideoNotCachedError: videos that are not in the cache, without ``skip_missing``.
        PrefillError: a question that cannot be asked, before any is.
        BudgetError: the cache cannot serve a budget or threshold.
        CacheCorruptError: videos are damaged; all others are answered.
        CacheUnreachableError: videos cannot be read now.
        ModelError: the checkpoint cannot be loaded, or is not the one that made the cache.
    """
    started = time.monotonic()
    folder = out or _default_out(files)
    written = read_questions(files, layout=layout)
    check_columns(written, by)
    cache = open_cache(location)
    questions, missing = _cached_questions(written, cache, skip_missing=skip_missing)
    check_columns(questions, by)
    _tell(written, questions, missing, say)
    readings = all_readings(budgets, thresholds)
    check_readings(readings, cache, questions)
    checkpoint = find_checkpoint(cache.manifest, model, where=cache.storage.location)
    depends_on = _depends_on(written, cache, checkpoint, device, manner)
    with Journal(folder, depends_on) as journal:
        todo = unanswered(questions, readings, cache, journal)
        if todo:
            _answer(todo, cache, checkpoint, journal, device, manner, progress_style)
        answers = [
            [_scored(q, journal.answer(each.name, q.question_id)) for q in questions]
            for each in readings
        ]
    rows = summarize(questions, answers, by=by, seed=SEED)
    report = EvalReport(rows, _about(files, cache, checkpoint, missing, depends_on))
    _write_whole(folder / RESULTS_NAME, json.dumps(report.to_json(), indent=2) + "\n")
    num_new = sum(len(asked) for by_reading in todo.values() for asked in by_reading.values())
    say(
        f"new answers: {num_new}, in {time.monotonic() - started:.1f} s; there before: "
        f"{len(questions) * len(readings) - num_new}; {RESULTS_NAME} in {folder}"
    )
    return report


def _depends_on(
    written: Sequence[Question],
    cache: TokenCache,
    checkpoint: Checkpoint,
    device: str,
    manner: Manner,
) -> dict[str, Any]:
    """What the answers depend on besides the setting; a CPU and a GPU round otherwise."""
    return {
        "questions": digest_questions(written),
        "cache": cache.fingerprint,
        "model": digest_checkpoint(checkpoint.directory),
        "device": resolve_device(device).type,
        "system": manner.system,
        "max_new_tokens": manner.max_new_tokens,
    }


def _about(
    files: Sequence[Path],
    cache: TokenCache,
    checkpoint: Checkpoint,
    missing: Sequence[str],
    depends_on: Mapping[str, Any],
) -> dict[str, Any]:
    """What was asked of what, for the report."""
    return {
        "questions": [str(path) for path in files],
        "cache": cache.storage.location,
        "model": checkpoint.name,
        "missing_videos": list(missing),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "depends_on": depends_on,
    }


def _answer(
    todo: Todo,
    cache: TokenCache,
    checkpoint: Checkpoint,
    journal: Journal,
    device: str,
    manner: Manner,
    progress_style: str,
) -> None:
    """Ask all that is left, a video at a time; those that cannot be read are told at the end.

    Raises:
        PrefillError: before anything is asked, a question that cannot be.
        CacheCorruptError: damaged videos, when all others are answered.
        CacheUnreachableError: unreadable ones likewise, or too many in a row.
    """
    encoder = cache.manifest.encoder
    directory = str(checkpoint.directory)
    tokenizer = load_matching_tokenizer(directory, encoder)
    most = most_positions(checkpoint.directory)
    check_prompts(tokenizer, distinct_questions(todo), manner, most_positions=most)
    model = load_language_model(directory, encoder, device=device)
    unread = UnreadVideos(cache.storage.location, journal.path)
    progress = EvalProgress(len(todo), style=progress_style)
    try:
        for video_id, asked in todo.items():
            with unread.collecting(video_id):
                journal.add(answer_readings(model, tokenizer, cache, video_id, asked, manner))
            progress.note(video_id)
    finally:
        progress.close()
    unread.raise_any()


def _scored(question: Question, answered: Answered) -> Answered:
    """By today's rules, whichever version wrote the answer down."""
    return replace(answered, is_right=is_right(question, answered.answer))


def _default_out(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        raise ConfigError("several question files have no folder of their own; give --out")
    return files[0].parent / f"{files[0].stem}.eval"


def _cached_questions(
    questions: Sequence[Question], cache: TokenCache, *, skip_missing: bool
) -> tuple[list[Question], tuple[str, ...]]:
    """The questions about cached videos, by the cache's ids, and the videos that are missing."""
    matched = match_videos([question.video_id for question in questions], cache)
    found = [
        replace(question, video_id=matched.video_ids[question.video_id])
        for question in questions
        if question.video_id in matched.video_ids
    ]
    if matched.missing and not (skip_missing and found):
        shown = ", ".join(_why_missing(cache, name) for name in matched.missing[:SHOWN])
        more = f" and {len(matched.missing) - SHOWN} more" if len(matched.missing) > SHOWN else ""
        advice = "--skip-missing leaves their questions out" if found else "is it the right cache?"
        raise VideoNotCachedError(
            f"{len(matched.missing)} of {len(matched.missing) + len(matched.video_ids)} videos of "
            f"the questions are not in {cache.storage.location}, or failed: {shown}{more}; {advice}"
        )
    return found, matched.missing


def _why_missing(cache: TokenCache, name: str) -> str:
    """A missing video's name; where the index has it, what became of it."""
    try:
        row = cache.row(name)
    except VideoNotCachedError:
        return repr(name)
    return f"{name!r} ({row.status}, {row.error_kind}: {row.error_message})"


def _tell(
    written: Sequence[Question],
    questions: Sequence[Question],
    missing: Sequence[str],
    say: Callable[[str], None],
) -> None:
    if missing:
        say(
            f"left out {len(written) - len(questions)} of {len(written)} questions: videos that "
            f"are not cached, or failed: {len(missing)}"
        )
    partial = sum(question.is_about_part for question in questions)
    if partial:
        say(
            f"questions about a part of their video (start, end): {partial}; they are asked of all "
            "that is cached under its name"
        )


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
