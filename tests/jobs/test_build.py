import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from jobs.build import build, plan_build
from jobs.worker import Worker
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.storage.remote import file_digest
from pipeline.store.manifest import create_or_check
from pipeline.store.verify import verify_cache
from schemas.config_file import parse_config
from schemas.errors import (
    CacheError,
    CacheMismatchError,
    CacheNotFoundError,
    CorpusError,
    FusionError,
    IndexCorruptError,
    ModelError,
)
from tests.faults import InterruptedWorker
from tests.synthetic import REPOSITORY


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three scenes, one of them in a folder, and a file that is no video."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "sub").mkdir()
    for seed, name in enumerate(["a.mp4", "b.mp4", "sub/c.mp4"]):
        write_scene_clip(root / name, seed=seed, seconds=2.0, width=128, height=96, fps=12)
    (root / "broken.mp4").write_bytes(bytes(range(256)) * 10)
    return root


@pytest.fixture
def config(tiny_checkpoint):
    sections = {"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}}
    return parse_config(sections)


def run(corpus, root, config, **options):
    return build([str(corpus)], root, config, progress_style="none", **options)


def digests(root):
    cache = open_cache(root)
    return {
        video_id: (cache.row(video_id).key, cache.row(video_id).head_digest)
        for video_id in cache.ids()
    }


def test_every_good_video_is_cached_and_every_bad_one_recorded(corpus, tmp_path, config):
    summary = run(corpus, tmp_path / "cache", config)
    cache = open_cache(tmp_path / "cache")
    assert list(cache.ids()) == ["a.mp4", "b.mp4", "sub/c.mp4"]
    assert (summary.tally.done, summary.tally.failed, summary.exit_code) == (3, 1, 3)
    row = cache.row("broken.mp4")
    assert (row.status, row.error_kind) == ("failed", "unreadable")
    video = cache.load("sub/c.mp4")
    assert video.num_tokens == cache.row("sub/c.mp4").tokens_after
    assert torch.isfinite(video.features).all()


def test_a_second_build_has_nothing_to_do(corpus, tmp_path, config):
    run(corpus, tmp_path / "cache", config)
    before = sorted(path.name for path in (tmp_path / "cache" / "shards").iterdir())
    again = run(corpus, tmp_path / "cache", config)
    assert (again.tally.total, again.plan.num_done, again.plan.num_failed_before) == (0, 3, 1)
    assert again.exit_code == 3, "the corpus still holds a video that failed"
    assert sorted(path.name for path in (tmp_path / "cache" / "shards").iterdir()) == before


def test_a_build_made_in_pieces_gives_the_bytes_of_one_made_at_once(corpus, tmp_path, config):
    run(corpus, tmp_path / "whole", config)
    for _ in range(4):
        run(corpus, tmp_path / "pieces", config, limit=1)
    assert digests(tmp_path / "pieces") == digests(tmp_path / "whole")


def test_decoding_ahead_and_small_shards_change_no_byte(corpus, tmp_path, config):
    run(corpus, tmp_path / "plain", config)
    busy = config.override("decode", children=2).override("store", shard_bytes=1)
    run(corpus, tmp_path / "busy", busy.override("encoder", max_patches_per_call=64))
    assert digests(tmp_path / "busy") == digests(tmp_path / "plain")
    assert len(list((tmp_path / "busy" / "shards").iterdir())) > 1


def test_failed_videos_are_tried_again_on_request_and_count_their_attempts(
    corpus, tmp_path, config
):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    run(copy, tmp_path / "cache", config)
    run(copy, tmp_path / "cache", config, retry_failed=True)
    assert open_cache(tmp_path / "cache").row("broken.mp4").attempts == 2
    shutil.copy(copy / "a.mp4", copy / "broken.mp4")
    assert run(copy, tmp_path / "cache", config).exit_code == 0
    assert "broken.mp4" in open_cache(tmp_path / "cache")


def test_a_video_that_changed_is_encoded_again(corpus, tmp_path, config):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    run(copy, tmp_path / "cache", config)
    before = open_cache(tmp_path / "cache").row("a.mp4").key
    write_scene_clip(copy / "a.mp4", seed=9, seconds=3.0, width=128, height=96, fps=12)
    assert run(copy, tmp_path / "cache", config).tally.done == 1
    assert open_cache(tmp_path / "cache").row("a.mp4").key != before


def test_another_configuration_is_refused_field_by_field(corpus, tmp_path, config):
    run(corpus, tmp_path / "cache", config)
    other = config.override("fusion", threshold=0.5).override("sampling", fps=1.0)
    with pytest.raises(CacheMismatchError) as caught:
        run(corpus, tmp_path / "cache", other)
    assert "fusion.threshold: cache has 0.7, this build 0.5" in str(caught.value)
    assert "sampling.fps: cache has 2.0, this build 1.0" in str(caught.value)


def test_anchor_first_changes_the_order_of_the_prompt_and_no_position(corpus, tmp_path, config):
    run(corpus, tmp_path / "plain", config)
    run(corpus, tmp_path / "anchor", config.override("fusion", order="anchor_first"))
    plain = open_cache(tmp_path / "plain").load("a.mp4")
    moved = open_cache(tmp_path / "anchor").load("a.mp4")
    anchor = moved.row.anchor_frame
    assert moved.coordinates[0, 0] == anchor

    def as_set(video):
        columns = torch.cat([video.input_ids[None].int(), video.position_ids]).T
        return sorted(map(tuple, columns.tolist()))

    assert as_set(moved) == as_set(plain)
    assert moved.next_position == plain.next_position


@pytest.mark.parametrize("method", ["none", "uniform", "random"])
def test_every_method_builds_and_loads(corpus, tmp_path, config, method):
    run(corpus, tmp_path / "cache", config.override("fusion", method=method))
    cache = open_cache(tmp_path / "cache")
    row = cache.row("a.mp4")
    expected = row.tokens_before if method == "none" else row.tokens_before // 3
    assert cache.load("a.mp4").num_tokens == expected


def test_a_budget_asked_of_a_method_without_one_is_refused_before_any_video(
    corpus, tmp_path, config
):
    impossible = config.override("fusion", method="none", budget=0.5)
    with pytest.raises(FusionError, match="cannot keep a budget"):
        run(corpus, tmp_path / "cache", impossible)
    assert not (tmp_path / "cache").exists()


def test_a_failure_budget_stops_the_build_and_keeps_what_is_done(corpus, tmp_path, config):
    strict = config.override("run", max_failures=0)
    strict = strict.override("store", shard_bytes=1)
    summary = run(corpus, tmp_path / "cache", strict)
    assert summary.exit_code == 4
    assert "the budget is 0" in summary.stopped_by
    assert open_cache(tmp_path / "cache").index.num_rows == summary.tally.finished


def test_manifest_columns_reach_the_index_and_its_sql(corpus, tmp_path, config):
    manifest = tmp_path / "videos.csv"
    lines = [f"first,{corpus / 'a.mp4'},kitchen,3", f"gone,{tmp_path / 'no.mp4'},garden,4"]
    manifest.write_text("\n".join(["video_id,uri,place,camera", *lines]))
    build([str(manifest)], tmp_path / "cache", config, progress_style="none")
    found = open_cache(tmp_path / "cache").query(
        "SELECT video_id, status, error_kind, place, camera FROM index ORDER BY video_id"
    )
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("first", "ok", None, "kitchen", 3),
        ("gone", "failed", "missing", "garden", 4),
    ]


def test_bad_corpora_and_models_are_refused_before_anything_is_written(corpus, tmp_path, config):
    with pytest.raises(CorpusError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "cache", config)
    with pytest.raises(ModelError, match=r"no config\.json"):
        run(corpus, tmp_path / "cache", config.override("encoder", model=str(corpus)))
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_plan_over_a_finished_cache_opens_no_video_that_was_not_touched(corpus, tmp_path, config):
    run(corpus, tmp_path / "cache", config)
    code = (
        "import sys\n"
        "def refuse(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('.mp4'): raise RuntimeError(args[0])\n"
        "sys.addaudithook(refuse)\n"
        "from pathlib import Path\n"
        "from jobs.build import plan_build\n"
        "from schemas.config import BuildConfig\n"
        f"root = Path({str(tmp_path / 'cache')!r})\n"
        f"plan = plan_build([{str(corpus)!r}], root, BuildConfig())\n"
        "print(plan.num_videos, plan.num_done, plan.num_failed_before, len(plan.todo))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout == "4 3 1 0\n"


@pytest.mark.slow
def test_a_build_that_is_killed_resumes_and_gives_the_bytes_of_an_undisturbed_one(
    corpus, tmp_path, config
):
    run(corpus, tmp_path / "whole", config)
    (tmp_path / "build.toml").write_text("[store]\nshard_bytes = 1\n")
    command = [
        *(sys.executable, "-m", "jobs", "build", str(corpus), "--out", str(tmp_path / "killed")),
        *("--model", config.encoder.model, "--device", "cpu", "--json"),
        *("--config", str(tmp_path / "build.toml")),
    ]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as building:
        first = json.loads(building.stderr.readline())
        building.kill()
    assert first["event"] == "video"
    assert building.returncode == -signal.SIGKILL
    assert run(corpus, tmp_path / "killed", config).tally.total < 4
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_good_video_replaced_by_a_broken_file_is_a_failure_and_back_again_is_cached(
    corpus, tmp_path, config
):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    states = []
    for source in ("a.mp4", "broken.mp4", "b.mp4", "a.mp4"):
        shutil.copy2(corpus / source, copy / "sub" / "c.mp4")
        run(copy, tmp_path / "cache", config)
        row = open_cache(tmp_path / "cache").row("sub/c.mp4")
        states.append((row.status, row.content_sha256 == file_digest(corpus / source)))
    assert states == [("ok", True), ("failed", True), ("ok", True), ("ok", True)]
    assert run(copy, tmp_path / "cache", config).tally.total == 0


def test_a_video_whose_shard_is_lost_or_cut_short_is_made_again(corpus, tmp_path, config):
    one_each = config.override("store", shard_bytes=1)
    run(corpus, tmp_path / "cache", one_each)
    before = digests(tmp_path / "cache")
    lost, cut, _ = sorted((tmp_path / "cache" / "shards").iterdir())
    lost.unlink()
    os.truncate(cut, 5000)
    assert run(corpus, tmp_path / "cache", one_each).tally.done == 2
    assert digests(tmp_path / "cache") == before
    assert list(verify_cache(open_storage(tmp_path / "cache"))) == []


def test_an_equal_id_in_another_folder_is_another_video(corpus, tmp_path, config):
    for folder, source in (("one", "a.mp4"), ("two", "b.mp4")):
        (tmp_path / folder).mkdir()
        copy = tmp_path / folder / "same.mp4"
        content = (corpus / source).read_bytes()
        copy.write_bytes(content + bytes(100_000 - len(content)))
        os.utime(copy, ns=(1, 1))
    run(tmp_path / "one", tmp_path / "cache", config)
    assert run(tmp_path / "one", tmp_path / "cache", config).tally.total == 0
    assert run(tmp_path / "two", tmp_path / "cache", config).tally.total == 1


def test_a_plan_refuses_other_settings_as_the_build_does(corpus, tmp_path, config):
    run(corpus, tmp_path / "cache", config)
    with pytest.raises(CacheMismatchError, match=r"sampling\.fps"):
        plan_build([str(corpus)], tmp_path / "cache", config.override("sampling", fps=1.0))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("Score", "2", "'Score' .* 'score'"), ("score", "high", "'score' .* string, .* int64")],
)
def test_columns_that_do_not_go_with_those_of_an_earlier_build_are_refused_before_anything_is_done(
    corpus, tmp_path, config, column, value, said
):
    root, manifest = tmp_path / "cache", tmp_path / "videos.csv"
    manifest.write_text(f"video_id,uri,score\na,{corpus / 'a.mp4'},1\n")
    build([str(manifest)], root, config, progress_style="none")
    before = sorted(root.rglob("*"))
    manifest.write_text(f"video_id,uri,{column}\nb,{corpus / 'b.mp4'},{value}\n")
    ray = config.override("run", runner="ray")
    for ask in (
        lambda: plan_build([str(manifest)], root, config),
        lambda: build([str(manifest)], root, config, progress_style="none"),
        lambda: build([str(manifest)], root, ray, progress_style="none"),
    ):
        with pytest.raises(CorpusError, match=said) as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before
    manifest.write_text(f"video_id,uri,score\nb,{corpus / 'b.mp4'},0.5\n")
    build([str(manifest)], root, config, progress_style="none")
    assert open_cache(root).index["score"].to_pylist() == [1.0, 0.5]


def test_an_index_without_its_manifest_is_not_built_upon(corpus, tmp_path, config):
    run(corpus, tmp_path / "cache", config)
    (tmp_path / "cache" / "manifest.json").unlink()
    with pytest.raises(IndexCorruptError, match=r"has an index and no manifest\.json"):
        run(corpus, tmp_path / "cache", config)


def test_a_place_that_cannot_be_written_is_one_clear_error(corpus, tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write"):
        run(corpus, tmp_path / "file" / "cache", config)


def test_a_folder_whose_name_is_not_utf8_can_be_built(corpus, tmp_path, config):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copytree(corpus, folder)
    summary = run(folder, tmp_path / "cache", config)
    assert (summary.tally.done, summary.tally.failed) == (3, 1)
    assert "caf\\udce9" in open_cache(tmp_path / "cache").row("a.mp4").path


def test_whole_and_decimal_numbers_are_one_configuration(corpus, tmp_path, config):
    run(corpus, tmp_path / "cache", config.override("sampling", fps=2))
    assert run(corpus, tmp_path / "cache", config.override("sampling", fps=2.0)).tally.total == 0


def test_a_worker_of_another_fingerprint_than_the_first_is_refused(tmp_path, config):
    with pytest.raises(CacheMismatchError, match="install the same on every node"):
        Worker(config, tmp_path, fingerprint="0" * 64)


def test_a_worker_refuses_a_root_that_is_not_the_drivers_cache(corpus, tmp_path, config):
    worker = Worker(config, tmp_path)
    with pytest.raises(CacheNotFoundError):
        next(worker.run())
    worker.close()


def test_a_new_row_wins_although_the_clock_of_the_old_one_was_ahead(
    corpus, tmp_path, config, monkeypatch
):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    now = time.time_ns
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time_ns", lambda: now() + 3600 * 10**9)
        run(copy, tmp_path / "cache", config)
    shutil.copy2(corpus / "b.mp4", copy / "a.mp4")
    run(copy, tmp_path / "cache", config)
    row = open_cache(tmp_path / "cache").row("a.mp4")
    assert row.content_sha256 == file_digest(corpus / "b.mp4")
    assert run(copy, tmp_path / "cache", config).tally.total == 0


def test_no_video_waits_longer_for_its_commit_than_the_settings_say(corpus, tmp_path, config):
    config = config.override("encoder", max_patches_per_call=1)  # one video is handed on at a time
    run(corpus, tmp_path / "cache", config.override("store", commit_seconds=1e-9))
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 3


def test_an_interrupted_task_commits_what_is_encoded(corpus, tmp_path, config):
    config = config.override("encoder", max_patches_per_call=1)
    worker = InterruptedWorker(config, tmp_path / "cache")
    create_or_check(open_storage(tmp_path / "cache"), worker.manifest)
    plan = plan_build([str(corpus / "a.mp4"), str(corpus / "b.mp4")], tmp_path / "cache", config)
    worker.add(plan.tasks())
    with pytest.raises(KeyboardInterrupt):
        list(worker.run())
    worker.close()
    assert len(open_cache(tmp_path / "cache")) == 1
