"""A job on a Ray cluster, followed from here: its log as it comes, then its exit code."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.dashboard import ANSWER_SECONDS, RAY_ERRORS, within
from jobs.ray_cluster import one_line
from schemas.errors import TokenreelError

CHECK_SECONDS = 20.0
"""After so long without a word in the log, the job is asked whether it still runs."""

RECONNECT_SECONDS = 2.0

LOST_SECONDS = 60.0
"""How long a cluster may be out of reach before its job is no longer followed."""

_SUMMARY = '{"event": "summary"'


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job on its cluster; ``job_id`` is what ``ray job`` calls it."""

    client: JobSubmissionClient
    job_id: str

    @property
    def next_steps(self) -> str:
        """What a person can do about the job, for messages."""
        job = f"--address {self.client.get_address()} {self.job_id}"
        return f"follow it with `ray job logs --follow {job}`, stop it with `ray job stop {job}`"

    def follow(self, show: Callable[[str], None]) -> int:
        """Show the log line by line until the job ends; returns its exit code.

        A log that breaks off while the job runs is taken up again.

        Raises:
            TokenreelError: the job did not start, was stopped, or its cluster is out of reach.
        """
        log = LogLines(show)
        last_answer, is_lost = time.monotonic(), False
        while True:
            is_whole = asyncio.run(self._tail(log))
            try:
                details = self._details()
            except RAY_ERRORS as error:
                if not is_lost:
                    show(f"no answer from the cluster; asking again for {LOST_SECONDS:.0f} s")
                is_lost = True
                if time.monotonic() - last_answer > LOST_SECONDS:
                    raise TokenreelError(
                        f"the cluster of job {self.job_id} is out of reach: {one_line(error)}. "
                        f"The job may go on; {self.next_steps}"
                    ) from error
            else:
                last_answer, is_lost = time.monotonic(), False
                if details.status.is_terminal():
                    break
            time.sleep(RECONNECT_SECONDS)
        if not is_whole:
            with suppress(*RAY_ERRORS):  # the exit code is worth more than the end of the log
                log.rewind()
                log.feed(self.client.get_job_logs(self.job_id))
        log.close()
        return _exit_code(self.job_id, details)

    async def _tail(self, log: "LogLines") -> bool:
        """Show what is new; False when the log broke off, or fell silent as its job had ended."""
        reading = asyncio.create_task(self._read(log))
        num_before = -1
        while not (await asyncio.wait({reading}, timeout=CHECK_SECONDS))[0]:
            is_silent, num_before = log.num_shown == num_before, log.num_shown
            if is_silent and not self._is_running():
                return False
        return reading.exception() is None

    async def _read(self, log: "LogLines") -> None:
        log.rewind()
        async for chunk in self.client.tail_job_logs(self.job_id):
            log.feed(chunk)

    def _is_running(self) -> bool:
        try:
            return not self._details().status.is_terminal()
        except RAY_ERRORS:
            return False

    def _details(self) -> JobDetails:
        return within(ANSWER_SECONDS, lambda: self.client.get_job_info(self.job_id))


class LogLines:
    """Cuts a log that comes in chunks into lines, each shown once however often it is re-read."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._position = 0
        self._rest = ""
        self.num_shown = 0

    def rewind(self) -> None:
        """The log comes again from its beginning."""
        self._position = 0

    def feed(self, chunk: str) -> None:
        """Take the next characters."""
        fresh = chunk[max(0, self.num_shown - self._position) :]
        self._position += len(chunk)
        self.num_shown += len(fresh)
        *lines, self._rest = (self._rest + fresh).split("\n")
        for line in lines:
            self._show(line)

    def close(self) -> None:
        """Show a last line that has no end."""
        if self._rest:
            self._show(self._rest)
            self._rest = ""


def find_summary(line: str) -> str | None:
    """The JSON object that ``build --json`` ends with, if ``line`` holds it."""
    start = line.find(_SUMMARY)
    if start < 0:
        return None
    try:
        summary, _ = json.JSONDecoder().raw_decode(line, start)
    except ValueError:
        return None
    return json.dumps(summary)


def _exit_code(job_id: str, details: JobDetails) -> int:
    code = details.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        raise TokenreelError(
            f"job {job_id} was stopped; what was committed stays, the same command resumes"
        )
    message = " ".join((details.message or "no reason is known").split())
    raise TokenreelError(f"job {job_id} failed outside the build: {message[:1000]}")
