"""The stages of a worker, each alone: what may wait, what is read ahead, when commits happen."""

import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from jobs.committer import Committer
from jobs.events import Assembled, Committed
from jobs.plan import Task
from jobs.read_ahead import ReadAhead
from jobs.room import Room
from jobs.worker import Worker
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.manifest import create_or_check
from schemas.config import StoreConfig
from schemas.config_file import parse_config
from schemas.errors import CacheError
from schemas.video import VideoRef
from tests.store.sample_cache import MANIFEST, make_sample

SOON = 240.0
"""Seconds for what happens within one, unless the machine is very busy."""


@pytest.fixture
def root(tmp_path):
    create_or_check(open_storage(tmp_path), MANIFEST)
    return tmp_path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(4):
        write_scene_clip(folder / f"{seed}.mp4", seed=seed, seconds=1.0, width=64, height=64, fps=8)
    return sorted(folder.iterdir())


def tasks_of(paths):
    return [
        Task(VideoRef(path.name, str(path), path.stat().st_size, path.stat().st_mtime_ns))
        for path in paths
    ]


def entries(*names):
    return [
        make_sample(seed=seed).pending(name, key=f"{seed:064x}") for seed, name in enumerate(names)
    ]


def test_whoever_would_add_to_a_full_room_waits_until_another_leaves():
    room = Room(limit_bytes=10)
    room.enter(10)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: room.wait() and entered.set())
    thread.start()
    assert not entered.wait(0.05)
    room.leave(1)
    assert entered.wait(SOON)
    thread.join()


def test_an_empty_room_takes_an_item_of_any_size():
    room = Room(limit_bytes=1)
    assert room.wait()
    room.enter(10**12)


def test_a_closed_room_holds_nobody():
    room = Room(limit_bytes=1)
    room.enter(5)
    room.close()
    assert not room.wait()


def test_no_video_is_begun_while_enough_frames_wait_for_the_encoder(clips):
    config = parse_config({"decode": {"read_ahead_bytes": 1}})
    delivered = SimpleQueue()
    reading = ReadAhead(config, lambda frames, *_: frames.copy(), delivered.put)
    try:
        reading.add(tasks_of(clips))
        first = delivered.get(timeout=SOON)
        with pytest.raises(Empty):
            delivered.get(timeout=0.3)
        reading.taken(first)
        assert delivered.get(timeout=SOON).ref.video_id == "1.mp4"
    finally:
        reading.close()


def test_videos_are_read_ahead_while_the_encoder_is_busy(clips):
    delivered = SimpleQueue()
    reading = ReadAhead(parse_config({}), lambda frames, *_: frames.copy(), delivered.put)
    try:
        reading.add(tasks_of(clips))
        names = [delivered.get(timeout=SOON).ref.video_id for _ in clips]
    finally:
        reading.close()
    assert names == [path.name for path in clips]


def test_what_is_told_to_be_the_last_is_committed_at_once(root):
    said = SimpleQueue()
    committer = Committer(open_storage(root), StoreConfig(), said.put)
    committer.put(entries("a", "b"), is_last=False)
    committer.put(entries("c"), is_last=True)
    committed = said.get(timeout=SOON)
    committer.close()
    assert [row.video_id for row in committed.rows] == ["a", "b", "c"]
    assert committed.write_seconds > 0


def test_a_shard_is_closed_as_soon_as_it_is_large_enough(root):
    said = SimpleQueue()
    committer = Committer(open_storage(root), StoreConfig(shard_bytes=1), said.put)
    committer.put(entries("a", "b"), is_last=False)
    names = [said.get(timeout=SOON).rows[0].video_id for _ in range(2)]
    committer.close()
    assert names == ["a", "b"]
    assert len(list((root / "shards").iterdir())) == 2


def test_nothing_waits_longer_for_its_commit_than_the_settings_say(root):
    said = SimpleQueue()
    committer = Committer(open_storage(root), StoreConfig(commit_seconds=0.01), said.put)
    committer.put(entries("a"), is_last=False)
    assert isinstance(said.get(timeout=SOON), Committed)
    committer.close()


def test_closing_commits_what_waits(root):
    committer = Committer(open_storage(root), StoreConfig(), lambda event: None)
    committer.put(entries("a"), is_last=False)
    committer.close()
    assert list(open_cache(root).ids()) == ["a"]


def test_a_disk_that_cannot_be_written_is_told_and_holds_up_nobody(tmp_path):
    (tmp_path / "shards").write_text("in the way")
    said = SimpleQueue()
    committer = Committer(open_storage(tmp_path), StoreConfig(shard_bytes=1), said.put)
    for name in "abcdef":
        committer.put(entries(name), is_last=False)
    assert isinstance(said.get(timeout=SOON), CacheError)
    committer.close()


def test_a_worker_says_of_each_video_first_that_it_is_assembled_then_that_it_is_committed(
    clips, tmp_path, tiny_checkpoint
):
    config = parse_config({"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}})
    worker = Worker(config, tmp_path)
    create_or_check(open_storage(tmp_path), worker.manifest)
    try:
        worker.add(tasks_of(clips))
        worker.finish()
        events = list(worker.run())
    finally:
        worker.close()
    assembled = [name for e in events if isinstance(e, Assembled) for name in e.video_ids]
    committed = [row.video_id for e in events if isinstance(e, Committed) for row in e.rows]
    assert sorted(assembled) == sorted(committed) == [path.name for path in clips]
    last_assembled = max(i for i, e in enumerate(events) if isinstance(e, Assembled))
    assert isinstance(events[-1], Committed)
    assert last_assembled < len(events) - 1


def test_a_worker_that_is_closed_ends_its_run_and_its_decode_children(
    clips, tmp_path, tiny_checkpoint
):
    config = parse_config({"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}})
    threads = set(threading.enumerate())
    worker = Worker(config, tmp_path)
    create_or_check(open_storage(tmp_path), worker.manifest)
    worker.add(tasks_of(clips))
    running = worker.run()
    next(running)
    worker.close()
    list(running)
    assert not {t for t in threading.enumerate() if t.daemon} - threads
    assert not decode_children()


def decode_children():
    """Process ids of this process's decode children."""
    tasks = Path("/proc/self/task").iterdir()
    pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    return [pid for pid, command in commands.items() if "pipeline.decode.child" in command]
