"""Corpora and builds in an object store, against a real S3 server on loopback."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from click.testing import CliRunner

from jobs.build import build, plan_build
from jobs.cli import cli
from jobs.plan import Task
from jobs.read_ahead import ReadAhead
from pipeline.cache import open_cache
from pipeline.corpus import find_videos, list_corpus
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.storage.remote import _client, file_digest, local_copy
from pipeline.store.verify import verify_cache
from schemas.config_file import parse_config
from schemas.errors import CacheError, CorpusError, TokenreelError

REPOSITORY = Path(__file__).parents[2]
NAMES = ["a.mp4", "b c%20é.mp4", "sub/c.webm.mp4", "broken.mp4"]


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    (root / "sub").mkdir()
    for seed, name in enumerate(NAMES[:3]):
        write_scene_clip(root / name, seed=seed, seconds=1.0, width=96, height=64, fps=8)
    (root / "broken.mp4").write_bytes(bytes(range(256)) * 10)
    return root


@pytest.fixture
def corpus(bucket, clips):
    """The clips, something hidden and something that is no video, below a prefix."""
    storage = open_storage(f"{bucket.url}/corpus")
    for name in NAMES:
        storage.replace(name, [(clips / name).read_bytes()])
    storage.replace(".hidden/x.mp4", [b"x"])
    storage.replace("readme.txt", [b"x"])
    storage.replace("sub/x.GIF", [b"x"])
    return f"{bucket.url}/corpus"


@pytest.fixture
def config(tiny_checkpoint):
    return parse_config({"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}})


def run(corpus, place, config, **options):
    return build([corpus], place, config, progress_style="none", **options)


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        ("", sorted(NAMES)),
        ("/", sorted(NAMES)),
        ("/sub", ["c.webm.mp4"]),
        ("/a.mp4", ["a.mp4"]),
        ("/*.mp4", ["a.mp4", "b c%20é.mp4", "broken.mp4"]),
        ("/**/c*", ["sub/c.webm.mp4"]),
        ("/sub/x.GIF", ["x.GIF"]),
    ],
)
def test_a_prefix_an_object_and_a_pattern_name_videos_as_folders_do(corpus, source, ids):
    refs = find_videos([corpus + source])
    assert [ref.video_id for ref in refs] == ids
    assert all(ref.size_bytes > 0 and ref.modified_ns > 0 for ref in refs)


def test_objects_that_are_no_videos_are_counted_and_lists_are_read(corpus, tmp_path):
    assert list_corpus([corpus]).passed_over == {".txt": 1, ".gif": 1}
    assert list_corpus([f"{corpus}/*.mp4"]).passed_over == {}
    assert list_corpus([f"{corpus}/sub/*"]).passed_over == {".gif": 1}
    with pytest.raises(CorpusError, match="no manifest that is read"):
        find_videos([f"{corpus}/readme.txt"])
    (tmp_path / "list.txt").write_text(f"{corpus}/a.mp4\n{corpus}/gone.mp4\n")
    found = {ref.path: ref.size_bytes > 0 for ref in find_videos([f"@{tmp_path}/list.txt"])}
    assert found == {f"{corpus}/a.mp4": True, f"{corpus}/gone.mp4": False}
    open_storage(corpus).replace("list.txt", [b"a.mp4\nsub/c.webm.mp4\n"])
    listed = find_videos([f"@{corpus}/list.txt"])
    assert [ref.video_id for ref in listed] == ["a.mp4", "sub/c.webm.mp4"]
    assert all(ref.size_bytes > 0 for ref in listed)


def test_a_prefix_that_holds_other_objects_takes_no_cache(corpus, config):
    with pytest.raises(CacheError, match="it holds 'a"):
        run(corpus, corpus, config)


@pytest.mark.slow
def test_columns_that_do_not_go_with_those_of_a_cache_in_a_store_are_refused(
    corpus, bucket, config, tmp_path
):
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"video_id,uri,score\na,{corpus}/a.mp4,1\n")
    run(str(manifest), f"{bucket.url}/cache", config)
    manifest.write_text(f"video_id,uri,Score\nb,{corpus}/a.mp4,1\n")
    with pytest.raises(CorpusError, match="'Score' of the corpus and column 'score'"):
        run(str(manifest), f"{bucket.url}/cache", config)


@pytest.mark.parametrize("source", ["/none", "/none.mp4", "/none*.mp4", "/sub/*.avi"])
def test_a_source_that_names_nothing_is_refused(corpus, source):
    with pytest.raises(CorpusError, match=r"does not exist|names no video"):
        find_videos([corpus + source])


def test_a_manifest_in_the_store_names_objects_beside_it_and_anywhere(corpus, tmp_path):
    lines = [
        {"video_id": "one", "uri": "a.mp4", "label": 3},
        {"video_id": "two", "uri": f"{corpus}/sub/c.webm.mp4", "label": 4},
        {"video_id": "gone", "uri": "gone.mp4", "label": 5},
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    open_storage(corpus).replace("m.jsonl", [text])
    (tmp_path / "m.jsonl").write_bytes(text)
    refs = find_videos([f"{corpus}/m.jsonl"])
    assert [ref.path for ref in refs] == [f"{corpus}/{n}" for n in ("a.mp4", NAMES[2], "gone.mp4")]
    assert [ref.size_bytes > 0 for ref in refs] == [True, True, False]
    assert [ref.extra["label"] for ref in refs] == [3, 4, 5]
    local = find_videos([str(tmp_path / "m.jsonl")])
    assert [ref.size_bytes > 0 for ref in local] == [False, True, False]
    open_storage(corpus).replace("bad.jsonl", [b"{"])
    with pytest.raises(CorpusError, match=r"s3://.*bad\.jsonl, line 1: not valid JSON"):
        find_videos([f"{corpus}/bad.jsonl"])
    open_storage(corpus).replace("up.csv", [b"video_id,uri\na,../x.mp4\n"])
    with pytest.raises(CorpusError, match="give the whole URL"):
        find_videos([f"{corpus}/up.csv"])


def test_a_digest_and_a_copy_are_of_the_objects_bytes(corpus, clips):
    for name in NAMES:
        assert file_digest(f"{corpus}/{name}") == file_digest(str(clips / name))
        with local_copy(f"{corpus}/{name}") as path:
            assert Path(path).read_bytes() == (clips / name).read_bytes()
        assert not Path(path).exists()
    with pytest.raises(InterruptedError), local_copy(f"{corpus}/a.mp4", is_wanted=lambda: False):
        pass


def test_a_build_from_and_into_the_store_equals_one_from_and_into_folders(
    corpus, clips, bucket, config, tmp_path
):
    place = f"{bucket.url}/cache"
    summary = run(corpus, place, config)
    assert (summary.tally.done, summary.tally.failed) == (3, 1)
    run(str(clips), tmp_path / "cache", config)
    remote, local = open_cache(place), open_cache(tmp_path / "cache")
    assert list(remote.ids()) == list(local.ids())
    for video_id in local.ids():
        assert remote.row(video_id).key == local.row(video_id).key
        assert torch.equal(remote.load(video_id).features, local.load(video_id).features)
    failure = remote.row("broken.mp4")
    assert f"{corpus}/broken.mp4" in failure.error_message
    assert "/tmp" not in failure.error_message
    assert list(verify_cache(open_storage(place))) == []


def test_a_second_build_does_only_what_is_new_and_a_lost_shard_is_made_again(
    corpus, clips, bucket, config
):
    place = f"{bucket.url}/cache"
    assert run(corpus, place, config, limit=2).tally.total == 2
    assert run(corpus, place, config).tally.total == 2
    before = len(bucket.requests())
    assert run(corpus, place, config).tally.total == 0
    assert not any("PUT" in line for line in bucket.requests()[before:])
    cache = open_cache(place)
    shard = cache.row("a.mp4").shard
    lost = [v for v in cache.ids() if cache.row(v).shard == shard]
    open_storage(place).remove(f"shards/{shard}.safetensors")
    plan = plan_build([corpus], place, config)
    assert sorted(ref.video_id for ref in plan.todo) == lost
    open_storage(corpus).replace("a.mp4", [(clips / "b c%20é.mp4").read_bytes()])
    assert "a.mp4" in [ref.video_id for ref in plan_build([corpus], place, config).todo]


def test_the_verbs_take_urls(corpus, bucket, config):
    place = f"{bucket.url}/cache"
    run(f"{corpus}/a.mp4", place, config)
    outputs = {}
    for command in (
        ["status", place, "--format", "json"],
        ["query", place, "tokens_after > 0", "--format", "json"],
        ["show", place, "a.mp4"],
        ["verify", place],
        ["compact", place],
        ["plan", f"{corpus}/a.mp4", "--out", place, "--json"],
    ):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, (command, result.output)
        outputs[command[0]] = result.stdout
    assert json.loads(outputs["status"])["videos"] == 1
    assert json.loads(outputs["plan"])["done"] == 1
    assert f"{corpus}/a.mp4" in outputs["show"]


@pytest.mark.slow
def test_two_builds_at_once_into_one_prefix_leave_one_row_for_each_video(
    corpus, bucket, tiny_checkpoint
):
    place = f"{bucket.url}/cache"
    command = [sys.executable, "-m", "jobs", "build", corpus, "--out", place]
    command += ["--model", str(tiny_checkpoint), "--device", "cpu"]
    both = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in both] == [3, 3]
    table = open_cache(place).index
    assert table["video_id"].to_pylist() == sorted(NAMES)
    assert CliRunner().invoke(cli, ["compact", place, "--grace-seconds", "0"]).exit_code == 0
    assert open_cache(place).index.equals(table)
    assert list(verify_cache(open_storage(place))) == []
    for video_id in open_cache(place).ids():
        open_cache(place).load(video_id)


def test_a_store_that_does_not_answer_ends_the_build_and_fails_no_video(
    corpus, config, monkeypatch
):
    (ref,) = find_videos([f"{corpus}/a.mp4"])
    monkeypatch.setattr("pipeline.storage.client.MAX_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _client.cache_clear()
    said = SimpleQueue()
    reading = ReadAhead(config, lambda frames, probe, count: frames, said.put)
    try:
        reading.add([Task(ref), Task(dataclasses.replace(ref, path=f"{corpus}//b.mp4"))])
        error = said.get(timeout=240)
    finally:
        reading.close()
        _client.cache_clear()
    assert isinstance(error, TokenreelError)
    assert "run the same command again" in str(error)
