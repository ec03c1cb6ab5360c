"""What answers depend on, as digests: the checkpoint's files and the questions."""

import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

from pipeline.evaluation.questions import Question
from schemas.errors import ModelError

_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".txt"})
"""Files that decide what a checkpoint answers: weights, configuration, tokenizer, template."""

_CHUNK_BYTES = 1 << 24


def digest_checkpoint(directory: Path) -> str:
    """xxh3 over names and bytes of a checkpoint's files: another fine-tune has another digest.

    Raises:
        ModelError: a file that cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        for path in sorted(directory.iterdir()):
            if path.suffix not in _SUFFIXES or path.is_dir():
                continue
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
    except OSError as error:
        raise ModelError(
            f"{error.filename or directory} cannot be read: {error.strerror}; expected a "
            "checkpoint whose files are all there, so correct its permissions or fetch it again"
        ) from error
    return str(digest.hexdigest())


def digest_questions(questions: Iterable[Question]) -> str:
    """xxh3 over ids, videos, prompts and answers; columns may change without another digest."""
    digest = xxhash.xxh3_128()
    for question in questions:
        told = question.question_id, question.video_id, question.prompt, question.answer
        digest.update(json.dumps(told).encode() + b"\n")
    return str(digest.hexdigest())
