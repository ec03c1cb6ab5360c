import os

import pytest

from jobs.failures import PROBATION_VIDEOS, FailureBudget, failed_row
from jobs.plan import make_plan
from pipeline.keys import content_digest
from pipeline.store.fragment import rows_to_table
from schemas.errors import DecodeError, FailureBudgetExceeded, WorkerDiedError
from schemas.video import VideoRef


def ref(path, video_id=None):
    info = path.stat()
    return VideoRef(video_id or path.name, str(path), info.st_size, info.st_mtime_ns)


def failed(video, error=None, **given):
    error = error or DecodeError("unreadable", "not readable")
    return failed_row(video, error, fingerprint="f" * 64, attempts=2, writer="test", **given)


@pytest.fixture
def videos(tmp_path):
    refs = []
    for name, size in {"a.mp4": 10, "b.mp4": 30, "c.mp4": 20}.items():
        (tmp_path / name).write_bytes(b"x" * size)
        refs.append(ref(tmp_path / name))
    return refs


def test_without_a_cache_everything_is_to_do(videos):
    plan = make_plan(videos, None)
    assert [video.video_id for video in plan.todo] == ["a.mp4", "b.mp4", "c.mp4"]
    assert (plan.num_videos, plan.num_done, plan.todo_bytes) == (3, 0, 60)


def test_tasks_hold_the_largest_videos_first(videos):
    tasks = make_plan(videos, None).tasks(max_videos=2)
    assert [[v.video_id for v in task.videos] for task in tasks] == [["b.mp4", "c.mp4"], ["a.mp4"]]


def test_several_workers_get_several_tasks_each(videos):
    assert len(make_plan(videos, None).tasks(16, workers=2)) == 3


def test_failed_videos_are_left_out_unless_asked_for_and_keep_their_attempts(videos):
    index = rows_to_table([failed(videos[1])])
    plan = make_plan(videos, index, fingerprint="f" * 64)
    assert [v.video_id for v in plan.todo] == ["a.mp4", "c.mp4"]
    assert plan.num_failed_before == 1
    again = make_plan(videos, index, fingerprint="f" * 64, retry_failed=True)
    assert len(again.todo) == 3
    assert [task.attempts for task in again.tasks(9)] == [(2, 0, 0)]


def test_a_file_that_changed_since_it_failed_is_tried_again(videos, tmp_path):
    index = rows_to_table([failed(videos[1])])
    (tmp_path / "b.mp4").write_bytes(b"y" * 31)
    fresh = [videos[0], ref(tmp_path / "b.mp4"), videos[2]]
    assert "b.mp4" in [v.video_id for v in make_plan(fresh, index, fingerprint="f" * 64).todo]


def test_a_file_touched_but_not_changed_is_recognised_by_its_content(videos, tmp_path):
    path = tmp_path / "b.mp4"
    index = rows_to_table([failed(videos[1], content_sha256=content_digest(path))])
    os.utime(path, ns=(1, 1))
    assert make_plan([ref(path)], index, fingerprint="f" * 64).num_failed_before == 1
    path.write_bytes(b"z" * 30)
    os.utime(path, ns=(2, 2))
    assert len(make_plan([ref(path)], index, fingerprint="f" * 64).todo) == 1


def test_limit_bounds_what_is_to_do(videos):
    assert len(make_plan(videos, None, limit=2).todo) == 2


def test_a_failure_becomes_a_row_with_its_kind_on_one_line(videos):
    row = failed(videos[0], DecodeError("timeout", "too\nslow"))
    assert (row.status, row.error_kind, row.error_message) == ("failed", "timeout", "too slow")
    unexpected = failed(videos[0], RuntimeError("boom"))
    assert (unexpected.error_kind, unexpected.error_message) == ("internal", "RuntimeError: boom")
    assert failed(videos[0], WorkerDiedError("gone")).status == "quarantined"


def test_a_count_of_failures_stops_at_the_next_one(videos):
    budget = FailureBudget(1)
    budget.count(failed(videos[0]))
    with pytest.raises(FailureBudgetExceeded, match="2 of 2 videos failed, the budget is 1"):
        budget.count(failed(videos[1]))


def test_a_fraction_of_failures_counts_only_after_the_probation(videos):
    budget = FailureBudget(0.5)
    for _ in range(PROBATION_VIDEOS - 1):
        budget.count(failed(videos[0]))
    with pytest.raises(FailureBudgetExceeded):
        budget.count(failed(videos[0]))


def test_no_budget_never_stops(videos):
    budget = FailureBudget(None)
    for _ in range(3 * PROBATION_VIDEOS):
        budget.count(failed(videos[0]))
    assert (budget.tried, budget.failed) == (300, 300)


def test_rows_of_another_configuration_do_not_count_as_done(videos):
    index = rows_to_table([failed(videos[1])])
    assert len(make_plan(videos, index, fingerprint="e" * 64).todo) == 3
