import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from jobs.events import Assembled, Committed, Lost
from jobs.progress import Progress, Tally
from schemas.index import IndexRow
from tests.synthetic import REPOSITORY


def row(name, status="failed"):
    return IndexRow(
        video_id=name,
        path=name,
        status=status,
        fingerprint="f" * 64,
        size_bytes=1,
        modified_ns=1,
        created_ns=1,
        writer="test",
        error_kind="timeout",
    )


def committed(*names):
    return Committed(tuple(map(row, names)), 0.0)


def test_json_style_says_one_object_per_video():
    stream = io.StringIO()
    progress = Progress(Tally(total=2), style="json", stream=stream)
    progress.note(committed("a"))
    progress.note(committed("b"))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["video_id"] for event in events] == ["a", "b"]
    assert (events[-1]["finished"], events[-1]["total"]) == (2, 2)


def test_off_a_terminal_nothing_is_said_before_the_interval_is_over():
    stream = io.StringIO()
    tally = Tally(total=3)
    progress = Progress(tally, stream=stream, line_every_seconds=1e9)
    progress.note(committed("a"))
    assert stream.getvalue() == ""


def test_off_a_terminal_a_line_comes_now_and_then_although_nothing_happens():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as lines, os.fdopen(write_end, "w") as stream:
        progress = Progress(Tally(total=3), stream=stream, line_every_seconds=0.01)
        assert lines.readline().startswith("0/3 videos")
        assert lines.readline().startswith("0/3 videos")
        progress.close()


def test_a_line_tells_count_rate_kept_failed_and_eta():
    tally = Tally(total=3)
    tally.note(committed("a"))
    line = tally.line()
    assert line.startswith("1/3 videos  ")
    for word in ("videos/s", "kept", "1 failed", "ETA"):
        assert word in line


@pytest.mark.slow
def test_on_a_terminal_there_is_one_bar():
    code = (
        "from jobs.progress import Progress, Tally\n"
        "from tests.jobs.test_progress import committed\n"
        "progress = Progress(Tally(total=2))\n"
        "progress.note(committed('a')); progress.note(committed('b')); progress.close()\n"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stderr=theirs, check=True)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "2/2" in text
    assert "2 failed" in text


def test_videos_count_as_finished_once_encoded_and_no_more_when_they_are_lost():
    tally = Tally(total=3)
    tally.note(Assembled(("a", "b")))
    assert (tally.finished, tally.committed) == (2, 0)
    tally.note(committed("a"))
    tally.note(Lost(("b",), "killed"))
    assert (tally.finished, tally.committed) == (1, 1)


def test_very_many_failures_are_counted_by_kind_and_only_the_first_are_kept():
    tally = Tally(total=1000)
    tally.note(committed(*map(str, range(1000))))
    assert tally.failed_by_kind == {"timeout": 1000}
    assert len(tally.first_failures) == 100
