"""A real Ray on this machine."""

import os
import signal
import threading

import pytest

from jobs.build import build
from jobs.plan import make_plan
from jobs.ray_runner import RayRunner
from pipeline.cache import open_cache
from pipeline.corpus import find_videos
from pipeline.decode.clips import write_scene_clip
from pipeline.store.manifest import create_or_check
from schemas.config import BuildConfig
from schemas.errors import ModelError, TokenreelError

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for seed in range(6):
        write_scene_clip(root / f"{seed}.mp4", seed=seed, seconds=2.0, width=128, height=96, fps=12)
    (root / "broken.mp4").write_bytes(bytes(range(256)) * 10)
    return root


@pytest.fixture
def config(tiny_checkpoint):
    sections = {
        "encoder": {"model": str(tiny_checkpoint), "device": "cpu"},
        "store": {"max_videos_per_task": 3},
        "run": {"runner": "ray", "workers": 2},
    }
    return BuildConfig.from_mapping(sections)


def content(root):
    cache = open_cache(root)
    return {name: (cache.row(name).key, cache.row(name).head_digest) for name in cache.ids()}


def test_both_runners_write_the_same_bytes_for_every_video(corpus, tmp_path, config):
    local = config.override("run", runner="local", workers=1)
    build([str(corpus)], tmp_path / "local", local, progress_style="none")
    summary = build([str(corpus)], tmp_path / "ray", config, progress_style="none")
    assert (summary.tally.done, summary.tally.failed, summary.exit_code) == (6, 1, 3)
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert open_cache(tmp_path / "ray").row("broken.mp4").error_kind == "unreadable"


def test_a_checkpoint_that_cannot_be_loaded_fails_once_with_its_own_error(corpus, tmp_path, config):
    with pytest.raises(ModelError, match=r"no config\.json"):
        build([str(corpus)], tmp_path / "cache", config.override("encoder", model=str(corpus)))
    assert not ray.is_initialized()


def test_an_address_where_no_ray_is_gives_one_clear_error(corpus, tmp_path, config):
    nowhere = config.override("run", address="127.0.0.1:1")
    with pytest.raises(TokenreelError, match=r"no Ray at address '127\.0\.0\.1:1'"):
        build([str(corpus)], tmp_path / "cache", nowhere)


def test_a_worker_that_is_killed_loses_no_video_and_condemns_none(corpus, tmp_path, config):
    """The decode child of the first video is held until its worker has been killed."""
    root = tmp_path / "cache"
    root.mkdir()
    runner = RayRunner(config.override("run", workers=1), root)
    try:
        create_or_check(root, runner.manifest)
        tasks = make_plan(find_videos([str(corpus)]), None).tasks(3)
        victim = ray.get(runner.worker_pids())[0]
        killer = threading.Thread(target=os.kill, args=(victim, signal.SIGKILL))
        killer.start()
        rows = [row for rows in runner.run(tasks) for row in rows]
        killer.join()
    finally:
        runner.close()
    assert sorted(row.video_id for row in rows if row.status == "ok") == [
        f"{seed}.mp4" for seed in range(6)
    ]
    assert [row.error_kind for row in rows if row.status != "ok"] == ["unreadable"]
