"""Answers on disk as they are given: one JSON line each, after a line that says whose."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.evaluation.records import Answered
from schemas.errors import ConfigError

FILE_NAME = "answers.jsonl"

VERSION = 1


class Journal:
    """The answers of one evaluation; a run that was stopped goes on from them.

    The header is written with the first answers. One process writes at a time. A last line that was
    not written to its end is cut off. Where a question was answered twice in one setting, the later
    answer counts.

    Args:
        folder: made where it is not there; the answers are in ``answers.jsonl``.
        header: what the answers depend on besides the setting; plain JSON values.

    Raises:
        ConfigError: the answers there have another header, cannot be read, or another process
            is writing; a folder that cannot be made.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.path = folder / FILE_NAME
        self._answers: dict[tuple[str, str], Answered] = {}
        self._header: Mapping[str, Any] | None = json.loads(
            json.dumps({"version": VERSION, **header})
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(
                f"cannot write answers to {folder}: {error.strerror}; give another --out"
            ) from error
        try:
            self._lock()
            lines = self._whole_lines()
            if lines:
                self._check_header(lines[0], self._header)
                self._read(lines[1:])
                self._header = None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def find(self, setting: str, question_id: str) -> Answered | None:
        """The answer to a question in a setting, if there is one."""
        return self._answers.get((setting, question_id))

    def answer(self, setting: str, question_id: str) -> Answered:
        """The answer to a question in a setting; KeyError where there is none."""
        return self._answers[setting, question_id]

    def add(self, answers: Iterable[Answered]) -> None:
        """Write answers; they outlive the process from here on."""
        answers = list(answers)
        if not answers:
            return
        head = [self._header] if self._header else []
        self._append([*head, *(dataclasses.asdict(answer) for answer in answers)])
        self._header = None
        self._remember(answers)

    def _remember(self, answers: Iterable[Answered]) -> None:
        self._answers.update({(each.setting, each.question_id): each for each in answers})

    def _append(self, values: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(value) + "\n" for value in values)
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}") from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self.path} is being written by another process; wait for it, or give another "
                "--out"
            ) from error

    def _whole_lines(self) -> list[bytes]:
        """The lines that are there; what follows the last line break is cut off."""
        self._file.seek(0)
        body = self._file.read()
        end = body.rfind(b"\n") + 1
        if end < len(body):
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)
        return body[:end].splitlines()

    def _check_header(self, line: bytes, header: Mapping[str, Any]) -> None:
        found = _parsed(line)
        if found == header:
            return
        if not isinstance(found, dict) or "version" not in found:
            raise ConfigError(f"{self.path} does not hold answers of an evaluation. {_ELSEWHERE}")
        names = sorted(found.keys() | header.keys())
        differs = [name for name in names if found.get(name) != header.get(name)]
        told = "; ".join(f"{n} {found.get(n)!r}, now {header.get(n)!r}" for n in differs)
        raise ConfigError(f"the answers in {self.path} belong to another run: {told}. {_ELSEWHERE}")

    def _read(self, lines: Iterable[bytes]) -> None:
        for number, line in enumerate(lines, 2):
            value = _parsed(line)
            if not isinstance(value, dict) or set(value) != _FIELDS:
                raise ConfigError(
                    f"{self.path}, line {number} is not an answer; remove that line, or the file"
                )
            self._remember([Answered(**value)])


_ELSEWHERE = "Give another --out; what is in that folder stays."

_FIELDS = {field.name for field in dataclasses.fields(Answered)}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
