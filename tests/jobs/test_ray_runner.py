"""A real Ray on this machine."""

import shutil

import pytest

from jobs.build import build
from jobs.events import Committed
from jobs.plan import make_plan
from jobs.ray_runner import RayRunner
from pipeline.cache import open_cache
from pipeline.corpus import find_videos
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.manifest import create_or_check
from schemas.config_file import parse_config
from schemas.errors import ConfigError, ModelError, TokenreelError
from tests.faults import MortalWorker

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
        "run": {"runner": "ray", "workers": 2, "videos_at_a_time": 3},
    }
    return parse_config(sections)


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
    with pytest.raises(TokenreelError, match=r"a Ray at address '127\.0\.0\.1:1'"):
        build([str(corpus)], tmp_path / "cache", nowhere)


def test_a_dead_worker_costs_no_video_and_only_the_one_that_kills_every_time_is_quarantined(
    corpus, tmp_path, config
):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    (copy / "0.mp4").rename(copy / "deadly.mp4")
    (copy / "1.mp4").rename(copy / "unlucky.mp4")
    root = tmp_path / "cache"
    root.mkdir()
    runner = RayRunner(config, root, worker_class=MortalWorker)
    try:
        create_or_check(open_storage(root), runner.manifest)
        tasks = make_plan(find_videos([str(copy)]), None).tasks()
        events = list(runner.run(tasks))
    finally:
        runner.close()
    assert (copy / "unlucky.died").exists()
    assert sum(len(event.rows) for event in events if isinstance(event, Committed)) == 7
    cache = open_cache(root)
    assert list(cache.ids()) == ["2.mp4", "3.mp4", "4.mp4", "5.mp4", "unlucky.mp4"]
    assert (cache.row("deadly.mp4").status, cache.row("broken.mp4").status) == (
        "quarantined",
        "failed",
    )


def test_more_workers_than_a_cluster_can_hold_are_refused_and_not_waited_for(
    corpus, tmp_path, config
):
    greedy = config.override("run", gpus_per_worker=1000.0)
    with pytest.raises(ConfigError, match="the Ray cluster has"):
        build([str(corpus)], tmp_path / "cache", greedy)
