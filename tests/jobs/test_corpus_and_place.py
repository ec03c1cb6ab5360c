"""What ``plan`` and ``build`` say of the corpus, and where a cache may begin."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner

from jobs.build import build, plan_build
from jobs.cli import cli
from jobs.submit import _absolute
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.manifest import require_room_for_cache
from schemas.config_file import parse_config
from schemas.errors import CacheError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_scene_clip(path, seed=1, seconds=1.0, width=64, height=64, fps=8)
    return path


@pytest.fixture
def corpus(clip, tmp_path):
    """A clip in two places, one of an awkward name, and files that are no videos."""
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    shutil.copy(clip, root / "a.mp4")
    shutil.copy(clip, root / "sub" / "two\nlines.mp4")
    for name in ("x.gif", "y.GIF", "sub/z.gif", "notes.txt", "README", ".hidden.gif"):
        (root / name).write_bytes(b"no video")
    return root


@pytest.fixture
def config(tiny_checkpoint):
    return parse_config({"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}})


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def test_plan_and_build_count_the_files_they_pass_over_by_suffix(corpus, tmp_path, tiny_checkpoint):
    out = ["--out", tmp_path / "cache", "--model", tiny_checkpoint, "--device", "cpu"]
    counts = {".gif": 3, "": 1, ".txt": 1}
    planned = run("plan", corpus, *out)
    line = "passed over: 3 .gif, 1 without suffix, 1 .txt; name a file to take it anyway"
    assert planned.stdout.splitlines().count(line) == 1
    assert json.loads(run("plan", corpus, *out, "--json").stdout)["passed_over"] == counts
    built = run("build", corpus, *out)
    assert built.stderr.splitlines().count(line) == 1
    assert built.exit_code == 0
    again = run("build", corpus, *out, "--json")
    assert json.loads(again.stdout)["passed_over"] == counts
    assert "passed over" not in run("plan", corpus / "a.mp4", *out).stdout


def test_a_video_whose_name_cannot_be_printed_is_built_and_asked_for_by_its_id(
    corpus, clip, tmp_path, config
):
    shutil.copy(clip, os.fsencode(corpus) + b"/caf\xe9.mp4")
    root = tmp_path / "cache"
    summary = build([str(corpus)], root, config, progress_style="none")
    assert (summary.tally.done, summary.tally.failed) == (3, 0)
    assert list(open_cache(root).ids()) == ["a.mp4", r"caf\udce9.mp4", r"sub/two\nlines.mp4"]
    assert open_cache(root).load(r"sub/two\nlines.mp4").num_tokens > 0
    assert build([str(corpus)], root, config, progress_style="none").tally.total == 0
    assert run("show", root, r"sub/two\nlines.mp4").exit_code == 0


def test_paths_from_standard_input_and_from_a_list_are_planned(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus)
    out = ["--out", tmp_path / "cache", "--json"]
    planned = run("plan", "-", *out, stdin="a.mp4\n\ngone.mp4\n")
    assert json.loads(planned.stdout)["videos"] == 2
    (tmp_path / "list.txt").write_text("corpus/a.mp4\n")
    assert json.loads(run("plan", f"@{tmp_path}/list.txt", *out).stdout)["videos"] == 1
    refused = run("plan", tmp_path / "list.txt", *out)
    assert (refused.exit_code, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)


def test_a_job_gets_lists_by_absolute_path_and_no_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _absolute("@list.txt") == f"@{tmp_path}/list.txt"
    refused = run("submit", "auto", "-", "--out", "c", "--model", "m")
    assert (refused.exit_code, "no standard input" in refused.stderr) == (2, True)


def test_a_folder_that_holds_other_files_takes_no_cache(corpus, tmp_path, config, tiny_checkpoint):
    root = tmp_path / "papers"
    root.mkdir()
    for name in ("thesis.tex", "b", "c", "d"):
        (root / name).write_text("mine")
    ray = config.override("run", runner="ray")
    for ask in (
        lambda: plan_build([str(corpus)], root, config),
        lambda: build([str(corpus)], root, config, progress_style="none"),
        lambda: build([str(corpus)], root, ray, progress_style="none"),
    ):
        with pytest.raises(CacheError, match=r"holds 'b', 'c', 'd' and 1 more") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in root.iterdir()) == ["b", "c", "d", "thesis.tex"]
    told = run("build", corpus, "--out", corpus, "--model", tiny_checkpoint)
    assert (told.exit_code, len(told.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize(
    "names",
    [[], [".DS_Store", "._index", "Thumbs.db", "desktop.ini"], [".0f1e.tmp"], ["shards/.9.tmp"]],
    ids=str,
)
def test_an_empty_folder_litter_of_systems_and_what_a_crash_left_take_a_cache(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    require_room_for_cache(open_storage(tmp_path))
    require_room_for_cache(open_storage(tmp_path / "new" / "folder"))


@pytest.mark.parametrize("name", ["a.mp4", "sub/x", ".git/config", "manifest.json.bak", "tmp"])
def test_anything_else_in_the_folder_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(CacheError, match=repr(name.partition("/")[0])):
        require_room_for_cache(open_storage(tmp_path))


def test_a_cache_beside_other_files_goes_on(corpus, tmp_path, config):
    root = tmp_path / "cache"
    build([str(corpus)], root, config, limit=1, progress_style="none")
    (root / "notes.txt").write_text("mine")
    assert build([str(corpus)], root, config, progress_style="none").tally.done == 1
