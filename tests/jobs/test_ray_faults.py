"""What goes wrong on a cluster, made to go wrong on a real Ray."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest

from jobs.build import build, plan_build
from jobs.events import Committed
from jobs.ray_cluster import connect
from jobs.read_ahead import ReadAhead
from jobs.worker import Worker
from pipeline.cache import open_cache
from pipeline.decode.clips import write_counter_clip
from schemas.config import RunConfig
from schemas.config_file import parse_config
from tests.faults import (
    HANGING_WIDTH,
    HangingWorker,
    MortalWorker,
    StrandedWorker,
    stop_decode_children,
)
from tests.jobs.ray_cases import (
    PATIENCE_SECONDS,
    WatchedBuild,
    assert_sound,
    pid_of,
    rows_written,
    run_build,
    started_build,
    wait_for_commits,
    wait_until,
    write_broken,
    write_scenes,
    writers,
)
from tests.synthetic import REPOSITORY

ray = pytest.importorskip("ray")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes of one each, that this process has joined."""
    notice_soon = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 2,
    }
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": notice_soon}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(REPOSITORY))
        nodes = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        connect(RunConfig(runner="ray", address=nodes.address))
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def on_a_ray_of_its_own(tiny_checkpoint):
    """One worker, and a commit for every video."""
    sections = {
        "encoder": {"model": str(tiny_checkpoint), "device": "cpu"},
        "store": {"shard_bytes": 1},
        "run": {"runner": "ray"},
    }
    return parse_config(sections)


@pytest.fixture
def config(on_a_ray_of_its_own, cluster):
    return on_a_ray_of_its_own.override("run", address=cluster.address)


@pytest.fixture
def hurried(config):
    """All frames are sampled, few of their pixels encoded, and a decode may take some seconds."""
    config = config.override("decode", decoder="pyav", deadline_seconds=6, deadline_per_second=0)
    return config.override("sampling", fps=24).override("preprocess", max_pixels=24 * 64 * 64)


@pytest.fixture(scope="module")
def good():
    """Names of so many small videos that a build is not over soon after its first commit."""
    return [f"{number:02}.mp4" for number in range(24)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, good):
    folder = tmp_path_factory.mktemp("videos") / "corpus"
    write_scenes(folder, good)
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def finish(corpus, root, config, **options):
    return build([str(corpus)], root, config, progress_style="none", **options)


def write_hanging_clip(path):
    write_counter_clip(path, num_frames=24, width=HANGING_WIDTH, height=720, fps=24)


def test_broken_and_hanging_videos_are_recorded_and_tried_again_on_request(tmp_path, root, hurried):
    corpus = tmp_path / "corpus"
    good = write_scenes(corpus, ["0.mp4", "1.mp4", "2.mp4"])
    write_broken(corpus / "broken.mp4")
    write_hanging_clip(corpus / "hanging.mp4")
    with closing(WatchedBuild(corpus, root, hurried, HangingWorker)) as building:
        list(building.events())
    assert building.exit_code == 3
    assert_sound(root, good, {"broken.mp4": "unreadable", "hanging.mp4": "timeout"})
    assert len(rows_written(root)) == 5
    assert finish(corpus, root, hurried, retry_failed=True).exit_code == 3
    assert_sound(root, [*good, "hanging.mp4"], {"broken.mp4": "unreadable"})
    cache = open_cache(root)
    assert [cache.row(name).attempts for name in ("broken.mp4", "hanging.mp4")] == [2, 2]


def test_a_video_whose_decode_is_broken_off_by_the_end_of_a_build_has_not_failed(tmp_path, hurried):
    write_hanging_clip(tmp_path / "hanging.mp4")
    tasks = plan_build([str(tmp_path)], tmp_path / "cache", hurried).tasks()
    begun, delivered = SimpleQueue(), SimpleQueue()

    def hang(frames, *_):
        stop_decode_children()
        begun.put(None)
        return frames.copy()

    reading = ReadAhead(hurried, hang, delivered.put)
    reading.add(tasks)
    begun.get(timeout=PATIENCE_SECONDS)
    reading.close()
    assert delivered.empty()


def test_a_worker_killed_once_costs_no_video(corpus, good, root, config):
    killed = None
    with closing(WatchedBuild(corpus, root, config, Worker)) as building:
        for event in building.events():
            if isinstance(event, Committed) and killed is None:
                killed = pid_of(event.rows[0].writer)
                os.kill(killed, signal.SIGKILL)
    assert building.exit_code == 0
    assert_sound(root, good, is_debris_allowed=True)
    assert {killed} < set(map(pid_of, writers(root)))


def test_only_the_videos_that_kill_every_worker_are_quarantined_and_none_of_their_neighbours(
    tmp_path, root, config
):
    corpus = tmp_path / "corpus"
    deadly, good = ["deadly-1.mp4", "deadly-2.mp4"], [f"{number}.mp4" for number in range(6)]
    write_scenes(corpus, [deadly[0], good[0], deadly[1], *good[1:]])
    two = config.override("run", workers=2)
    with closing(WatchedBuild(corpus, root, two, MortalWorker)) as building:
        list(building.events())
    assert building.exit_code == 3
    assert_sound(root, good, dict.fromkeys(deadly, "worker_died"), is_debris_allowed=True)
    rows = [open_cache(root).row(name) for name in [*deadly, *good]]
    tries = [(row.status, row.attempts) for row in rows]
    assert tries == [("quarantined", 2)] * 2 + [("ok", 1)] * 6
    assert sorted(rows_written(root)) == sorted([*deadly, *good])


def test_a_build_whose_driver_was_killed_is_resumed_beside_what_is_left_of_it(
    corpus, good, root, config, on_a_ray_of_its_own
):
    with started_build(corpus, root, on_a_ray_of_its_own) as building:
        wait_for_commits(root, building)
        building.kill()
        building.wait()
    left_behind = set(map(pid_of, writers(root)))
    assert finish(corpus, root, config).exit_code == 0
    assert_sound(root, good, is_debris_allowed=True)
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in left_behind),
        "the end of the dead driver's workers",
    )


def test_two_builds_into_one_cache_at_the_same_time_give_one_row_per_video(
    corpus, good, root, config
):
    with started_build(corpus, root, config) as one, started_build(corpus, root, config) as other:
        said = [building.communicate(timeout=PATIENCE_SECONDS) for building in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], said
    assert_sound(root, good)


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds some videos only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_build_with_one_line_and_with_more_space_it_goes_on(
    corpus, good, small_disk, config
):
    root = small_disk / "cache"
    code, stderr = run_build(corpus, root, config, "--workers", "2")
    assert code == 1
    [line] = stderr.splitlines()
    assert line.startswith(f"error: cannot write {root}")
    assert "No space left on device" in line
    kept = list(open_cache(root).ids())
    assert 0 < len(kept) < len(good)
    assert_sound(root, kept, is_debris_allowed=True)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert finish(corpus, root, config).exit_code == 0
    assert_sound(root, good, is_debris_allowed=True)


def test_a_checkpoint_that_cannot_be_loaded_is_one_line_however_many_workers(corpus, root, config):
    code, stderr = run_build(corpus, root, config, "--workers", "2", "--model", str(corpus))
    assert code == 1
    [line] = stderr.splitlines()
    assert line.startswith("error: ")
    assert "no config.json" in line


def test_a_failure_budget_stops_the_build_and_keeps_what_is_encoded(tmp_path, root, config):
    names = write_scenes(tmp_path / "corpus", [f"{number}.mp4" for number in range(8)])
    write_broken(tmp_path / "corpus" / "broken.mp4", num_bytes=99_840)
    code, stderr = run_build(tmp_path / "corpus", root, config, "--max-failures", "0")
    assert code == 4
    assert "stopped: 1 of " in stderr
    kept = list(open_cache(root).ids())
    assert "0.mp4" in kept
    assert set(kept) <= set(names)
    assert_sound(root, kept, {"broken.mp4": "unreadable"})


def test_a_failure_budget_given_as_a_fraction_counts_after_a_hundred_videos(tmp_path, root, config):
    (tmp_path / "corpus").mkdir()
    for number in range(200):
        write_broken(tmp_path / "corpus" / f"{number}.mp4")
    half = config.override("run", max_failures=0.5)
    assert finish(tmp_path / "corpus", root, half, limit=60).exit_code == 3
    assert finish(tmp_path / "corpus", root, half).exit_code == 4
    assert 60 + 100 <= len(rows_written(root)) <= 200


def test_workers_are_replaced_after_their_share_of_videos(tmp_path, root, config):
    names = write_scenes(tmp_path / "corpus", [f"{number}.mp4" for number in range(7)])
    brief = config.override("run", workers=2, recycle_videos=2)
    assert finish(tmp_path / "corpus", root, brief).exit_code == 0
    assert_sound(root, names)
    assert sorted(rows_written(root)) == names
    by_writer = writers(root)
    assert max(by_writer.count(writer) for writer in by_writer) == 2


def test_a_program_reads_json_alone_although_a_worker_is_killed(
    corpus, good, root, on_a_ray_of_its_own
):
    all_frames = on_a_ray_of_its_own.override("sampling", fps=12)
    with started_build(corpus, root, all_frames, "--json") as building:
        wait_for_commits(root, building)
        os.kill(pid_of(writers(root)[0]), signal.SIGKILL)
        stdout, stderr = building.communicate(timeout=PATIENCE_SECONDS)
    assert building.returncode == 0
    assert json.loads(stdout)["done"] == len(good)
    said = [json.loads(line) for line in stderr.splitlines()]
    assert [entry for entry in said if "a worker died" in entry.get("text", "")]


@pytest.mark.parametrize("end", [os.killpg, os.kill], ids=["ctrl-c", "terminate"])
def test_a_build_told_to_end_says_one_line_and_is_resumed(
    end, corpus, good, root, config, on_a_ray_of_its_own
):
    number = signal.SIGINT if end is os.killpg else signal.SIGTERM
    with started_build(corpus, root, on_a_ray_of_its_own) as building:
        wait_for_commits(root, building)
        end(building.pid, number)
        _, stderr = building.communicate(timeout=PATIENCE_SECONDS)
    assert building.returncode == 130
    [line] = [line for line in stderr.splitlines() if not line.startswith("metrics: ")]
    assert line == "interrupted; what was committed stays, the same command resumes"
    kept = list(open_cache(root).ids())
    assert_sound(root, kept)
    resumed = finish(corpus, root, config)
    assert (resumed.exit_code, resumed.plan.num_done) == (0, len(kept))
    assert_sound(root, good)


def test_a_build_outlives_a_node_and_blames_no_video_for_its_end(tmp_path, root, config, cluster):
    corpus = tmp_path / "corpus"
    names = write_scenes(corpus, ["stranded.mp4", *(f"{number}.mp4" for number in range(7))])
    lost = corpus / "stranded.node"
    two = config.override("run", workers=2)
    with (
        ThreadPoolExecutor(1) as threads,
        closing(WatchedBuild(corpus, root, two, StrandedWorker)) as building,
    ):
        driving = threads.submit(list, building.events())
        wait_until(lost.exists, "a suspect, alone in its worker, with which that never ends")
        [node] = [node for node in cluster.worker_nodes if node.node_id == lost.read_text()]
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        driving.result(PATIENCE_SECONDS)
    assert building.exit_code == 0
    assert_sound(root, names, is_debris_allowed=True)
