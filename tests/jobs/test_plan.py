import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.failures import PROBATION_VIDEOS, FailureBudget, failed_row
from jobs.plan import DONE_COLUMNS, BuildPlan, have_contents, make_plan
from pipeline.storage.remote import file_digest
from pipeline.store.fragment import rows_to_table
from schemas.errors import DecodeError, FailureBudgetExceeded, WorkerDiedError
from schemas.index import INDEX_SCHEMA
from schemas.video import VideoRef
from tests.synthetic import REPOSITORY


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


def test_the_largest_videos_come_first(videos):
    tasks = make_plan(videos, None).tasks()
    assert [task.video_id for task in tasks] == ["b.mp4", "c.mp4", "a.mp4"]


def test_failed_videos_are_left_out_unless_asked_for_and_keep_their_attempts(videos):
    index = rows_to_table([failed(videos[1])])
    plan = make_plan(videos, index, fingerprint="f" * 64)
    assert [v.video_id for v in plan.todo] == ["a.mp4", "c.mp4"]
    assert plan.num_failed_before == 1
    again = make_plan(videos, index, fingerprint="f" * 64, retry_failed=True)
    assert len(again.todo) == 3
    assert [task.attempts for task in again.tasks()] == [2, 0, 0]


def test_a_file_that_changed_since_it_failed_is_tried_again(videos, tmp_path):
    index = rows_to_table([failed(videos[1])])
    (tmp_path / "b.mp4").write_bytes(b"y" * 31)
    fresh = [videos[0], ref(tmp_path / "b.mp4"), videos[2]]
    assert "b.mp4" in [v.video_id for v in make_plan(fresh, index, fingerprint="f" * 64).todo]


def test_a_file_touched_but_not_changed_is_recognised_by_its_content(videos, tmp_path):
    path = tmp_path / "b.mp4"
    index = rows_to_table([failed(videos[1], content_sha256=file_digest(path))])
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


NUM_IDS = 12
SHARDS = {"a" * 64: 100, "b" * 64: 2**63 - 1}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Paths, one of them not UTF-8, and the digest of each; the last file is not there."""
    folder = tmp_path_factory.mktemp("contents")
    names = ("a", "b", os.fsdecode(b"\xff"), "gone")
    paths = [str(folder / name) for name in names]
    for path, text in zip(paths, ("same", "same", "other"), strict=False):
        Path(path).write_text(text)
    return {path: file_digest(path) if Path(path).exists() else None for path in paths}


def corpora(paths):
    """Corpora, an id twice now and then, one id that no index can hold."""
    names = st.integers(0, NUM_IDS).map(lambda n: f"{n}.mp4" if n else "\udcff.mp4")
    sizes_and_times = st.sampled_from([(4, 1), (4, 2), (5, 1), (-1, -1)])
    refs = st.builds(
        lambda name, path, known: VideoRef(name, path, *known),
        *(names, st.sampled_from(paths), sizes_and_times),
    )
    return st.lists(refs, max_size=3 * NUM_IDS)


def indices(contents):
    """Index tables in one or two chunks; rows differ from the corpus in any way."""
    rows = st.fixed_dictionaries(
        {
            "video_id": st.integers(0, NUM_IDS).map(lambda n: f"{n}.mp4" if n else "?.mp4"),
            "path": st.sampled_from([VideoRef("", path, 0, 0).printable_path for path in contents]),
            "status": st.sampled_from(["ok", "ok", "ok", "failed", "quarantined"]),
            "size_bytes": st.sampled_from([4, 4, 4, 5, -1]),
            "modified_ns": st.sampled_from([1, 1, 2, -1]),
            "content_sha256": st.sampled_from([*contents.values(), "0" * 64]),
            "attempts": st.integers(1, 3),
            "fingerprint": st.sampled_from(["f" * 64, "f" * 64, "f" * 64, "e" * 64]),
            "shard": st.sampled_from([*SHARDS, "c" * 64]),
            "offset": st.sampled_from([0, 60, 2**63 - 1]),
            "num_bytes": st.sampled_from([40, 41, 2**63 - 1]),
            "created_ns": st.integers(1, 2**62),
        }
    )
    tables = st.lists(rows, max_size=NUM_IDS, unique_by=lambda row: row["video_id"]).map(
        lambda found: pa.Table.from_pylist(found, schema=INDEX_SCHEMA)
    )
    cut = st.integers(0, NUM_IDS)
    return st.builds(lambda t, n: pa.concat_tables([t.slice(0, n), t.slice(n)]), tables, cut)


def plan_by_loops(videos, index, contents, *, fingerprint, shard_sizes, retry_failed, limit):
    """The rule of ``make_plan`` said for one video after the other."""
    rows = {row["video_id"]: row for row in index.select(DONE_COLUMNS).to_pylist()}
    todo, attempts, newer_than_ns, num_done, num_failed = [], {}, {}, 0, 0
    for video in videos:
        row = rows.get(video.video_id)
        if row is None or row["fingerprint"] != fingerprint:
            todo.append(video)
            continue
        seen_as = (video.modified_ns, video.printable_path)
        is_same = video.size_bytes == row["size_bytes"] and (
            seen_as == (row["modified_ns"], row["path"])
            or contents[video.path] == row["content_sha256"] is not None
        )
        end = row["offset"] + row["num_bytes"]
        is_stored = shard_sizes is None or shard_sizes.get(row["shard"], 0) >= end
        if is_same and row["status"] == "ok" and is_stored:
            num_done += 1
        elif is_same and row["status"] != "ok" and not retry_failed:
            num_failed += 1
        else:
            todo.append(video)
            attempts[video.video_id] = row["attempts"]
            newer_than_ns[video.video_id] = row["created_ns"]
    return BuildPlan(
        len(videos), num_done, num_failed, tuple(todo[:limit]), attempts, newer_than_ns
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_corpus_against_any_index_gives_the_plan_of_the_plain_loop(contents, data):
    videos, index = data.draw(corpora(list(contents))), data.draw(indices(contents))
    asked = {
        "fingerprint": data.draw(st.sampled_from(["f" * 64, None])),
        "shard_sizes": data.draw(st.sampled_from([None, SHARDS])),
        "retry_failed": data.draw(st.booleans()),
        "limit": data.draw(st.sampled_from([None, 0, 3])),
    }
    assert make_plan(videos, index, **asked) == plan_by_loops(videos, index, contents, **asked)


def committed(video, **changes):
    """What the index says of a committed video, as far as a plan looks."""
    return {
        "video_id": video.video_id,
        "path": video.printable_path,
        "status": "ok",
        "size_bytes": video.size_bytes,
        "modified_ns": video.modified_ns,
        "content_sha256": file_digest(video.path),
        "attempts": 1,
        "fingerprint": "f" * 64,
        "shard": "a" * 64,
        "offset": 0,
        "num_bytes": 100,
        "created_ns": 7,
    } | changes


def index_of(*rows):
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


@pytest.mark.parametrize(
    "place", [{"shard": None, "offset": None}, {"offset": -50}, {"num_bytes": -1}]
)
def test_a_committed_row_without_a_place_in_a_shard_is_made_again(videos, place):
    index = index_of(committed(videos[0], **place), committed(videos[1]), committed(videos[2]))
    plan = make_plan(videos, index, fingerprint="f" * 64, shard_sizes=SHARDS)
    assert [video.video_id for video in plan.todo] == ["a.mp4"]


def test_a_plan_looks_at_no_further_columns_of_the_index(videos):
    index = index_of(*map(committed, videos)).select(DONE_COLUMNS)
    assert make_plan(videos, index, fingerprint="f" * 64).num_done == 3


def test_contents_are_compared_in_order_and_a_file_that_is_gone_is_not_the_same(tmp_path):
    paths = [tmp_path / f"{number}.mp4" for number in range(50)]
    for path in paths:
        path.write_bytes(path.name.encode())
    refs, digests = [ref(path) for path in paths], [file_digest(path) for path in paths]
    paths[3].unlink()
    paths[40].write_bytes(b"40.mp5")
    lines = []
    same = have_contents(refs, digests, say=lines.append, every_seconds=0)
    assert [number for number in range(50) if not same[number]] == [3, 40]
    assert lines[-1] == "read 50 of 50 videos whose path or time changed, 0.0 of 0.0 GB"


PLAN_AND_REPORT = """
import os, sys
import pyarrow.parquet as pq
from jobs.plan import make_plan
from pipeline.corpus import find_videos

def resident_mb(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) // 1024

folder, index = sys.argv[1:]
opened = []
def note(event, args):
    if event == "open" and str(args[0]).startswith(folder):
        opened.append(os.path.basename(args[0]))
sys.addaudithook(note)
table = pq.read_table(index)
before = resident_mb("VmRSS")
plan = make_plan(
    find_videos([folder]), table, fingerprint="f" * 64, shard_sizes={"a" * 64: 100},
    retry_failed=True,
)
print(resident_mb("VmHWM") - before, plan.num_done, len(plan.todo), *sorted(opened))
"""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc"
)


def plan_in_a_fresh_process(folder, index, tmp_path):
    """Megabytes that planning added, videos done and to do, and the corpus files it opened."""
    pq.write_table(index, tmp_path / "index.parquet")
    command = [sys.executable, "-c", PLAN_AND_REPORT, str(folder), str(tmp_path / "index.parquet")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    megabytes, num_done, num_todo, *opened = done.stdout.split()
    return int(megabytes), int(num_done), int(num_todo), opened


@needs_proc
def test_planning_opens_only_videos_that_were_touched_and_whose_content_decides(tmp_path):
    names = ["done", "touched", "grown", "unstored", "failed", "new"]
    for name in names:
        path = tmp_path / "corpus" / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_text("same length")
    refs = {name: ref(tmp_path / "corpus" / f"{name}.mp4") for name in names}
    index = index_of(
        committed(refs["done"]),
        committed(refs["touched"], modified_ns=1),
        committed(refs["grown"], modified_ns=1, size_bytes=1),
        committed(refs["unstored"], modified_ns=1, shard="b" * 64),
        committed(refs["failed"], modified_ns=1, status="failed"),
    )
    _, num_done, num_todo, opened = plan_in_a_fresh_process(tmp_path / "corpus", index, tmp_path)
    assert (num_done, num_todo, opened) == (2, 4, ["touched.mp4"])


@needs_proc
@pytest.mark.slow
def test_twenty_thousand_finished_videos_are_planned_without_opening_one_in_little_memory(tmp_path):
    rows = []
    for number in range(20_000):
        path = tmp_path / "corpus" / f"{number // 1000:02d}" / f"clip_{number:05d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        rows.append(committed(ref(path, f"{path.parent.name}/{path.name}")))
    planned = plan_in_a_fresh_process(tmp_path / "corpus", index_of(*rows), tmp_path)
    assert planned[1:] == (20_000, 0, [])
    assert planned[0] < 60


@pytest.mark.slow
def test_a_hundred_thousand_videos_are_ordered_within_two_seconds_of_work():
    videos = [VideoRef(f"{n:06d}.mp4", "", n * 7919 % 1000, 1) for n in range(100_000)]
    plan = make_plan(videos, None)
    started = time.process_time()
    tasks = plan.tasks()
    assert time.process_time() - started < 2
    by_size = sorted(videos, key=lambda video: (-video.size_bytes, video.video_id))
    assert [task.ref for task in tasks] == by_size
