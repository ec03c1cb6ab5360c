"""Damage found by verify, discarded, and made again by a build: just that, and to the byte."""

import shutil

import pytest
from click.testing import CliRunner

from jobs.build import build, plan_build
from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.verify import verify_cache
from schemas.config_file import parse_config
from tests.store.test_store_damage import flip

NAMES = ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(NAMES):
        write_scene_clip(root / name, seed=seed, seconds=1.0, width=64, height=64, fps=8)
    return root


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return parse_config({"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}})


@pytest.fixture(scope="module")
def built(corpus, config, tmp_path_factory):
    root = tmp_path_factory.mktemp("built") / "cache"
    assert run(corpus, root, config).tally.done == 5
    return root


@pytest.fixture
def cache(built, tmp_path):
    return shutil.copytree(built, tmp_path / "cache")


def run(corpus, root, config, **options):
    return build([str(corpus)], root, config, progress_style="none", **options)


def verb(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def flip_features(root, *video_ids):
    for video_id in video_ids:
        row = open_cache(root).row(video_id)
        flip(root / "shards" / f"{row.shard}.safetensors", row.offset + row.num_bytes - 1)


def require_same_videos(root, expected):
    found, wanted = open_cache(root), open_cache(expected)
    assert list(found.ids()) == NAMES
    for video_id in NAMES:
        video, good = found.load(video_id), wanted.load(video_id)
        for name in ("features", "coordinates", "score", "input_ids", "position_ids", "match"):
            assert getattr(video, name).equal(getattr(good, name)), (video_id, name)


def test_two_damaged_videos_of_five_are_listed_discarded_and_encoded_again(
    corpus, built, cache, config
):
    flip_features(cache, "b.mp4", "d.mp4")
    found = verb("verify", cache, "--format", "csv")
    assert found.exit_code == 3
    assert [line.split(",")[1] for line in found.stdout.splitlines()[1:]] == ["b.mp4", "d.mp4"]
    assert run(corpus, cache, config).tally.total == 0, "verify alone takes nothing away"

    assert verb("verify", cache, "--discard").exit_code == 0
    plan = plan_build([str(corpus)], cache, config)
    assert [ref.video_id for ref in plan.todo] == ["b.mp4", "d.mp4"]
    assert (plan.num_done, plan.num_failed_before) == (3, 0)
    summary = run(corpus, cache, config)
    assert (summary.tally.done, summary.tally.failed, summary.exit_code) == (2, 0, 0)

    assert verb("verify", cache).stdout == ""
    require_same_videos(cache, built)
    compact_cache(open_storage(cache), grace_seconds=0)
    assert list(verify_cache(open_storage(cache))) == []
    require_same_videos(cache, built)
    assert run(corpus, cache, config).tally.total == 0


def test_a_shard_whose_header_is_damaged_is_made_again_under_its_own_name(
    corpus, built, cache, config
):
    for shard in (cache / "shards").iterdir():  # several where the build took long
        flip(shard, 3)
    verb("verify", cache, "--discard")
    assert run(corpus, cache, config).tally.done == 5
    for row in map(open_cache(cache).row, NAMES):
        assert row.attempts == 2
    compact_cache(open_storage(cache), grace_seconds=0)
    assert list(verify_cache(open_storage(cache))) == []
    require_same_videos(cache, built)


def test_the_only_video_of_a_shard_is_made_again_in_place_of_the_damaged_file(
    corpus, config, tmp_path
):
    one_each = config.override("store", shard_bytes=1)
    root = tmp_path / "small"
    run(corpus, root, one_each)
    shards = {path: path.read_bytes() for path in (root / "shards").iterdir()}
    flip_features(root, "c.mp4")
    verb("verify", root, "--discard")
    assert run(corpus, root, one_each).tally.done == 1
    assert {path: path.read_bytes() for path in (root / "shards").iterdir()} == shards


def test_videos_of_a_fragment_that_was_set_aside_are_made_again(corpus, built, cache, config):
    for fragment in (cache / "index").glob("*.parquet"):
        fragment.write_bytes(fragment.read_bytes()[:-5])
    assert verb("build", corpus, "--out", cache, "--model", config.encoder.model).exit_code == 1
    verb("verify", cache, "--discard")
    assert run(corpus, cache, config).tally.done == 5
    assert list(verify_cache(open_storage(cache))) == []
    require_same_videos(cache, built)


def test_a_damaged_video_whose_file_is_gone_is_a_failure_that_is_left_alone(
    corpus, cache, config, tmp_path
):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    flip_features(cache, "b.mp4")
    verb("verify", cache, "--discard")
    (copy / "b.mp4").write_bytes(b"no video any more")
    summary = run(copy, cache, config)
    assert (summary.tally.total, summary.tally.failed) == (1, 1)
    assert open_cache(cache).row("b.mp4").status == "failed"
    assert run(copy, cache, config).tally.total == 0
