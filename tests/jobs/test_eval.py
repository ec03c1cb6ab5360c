import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from jobs import evaluate as evaluation
from jobs.ask import ask_cache
from jobs.build import build
from jobs.cli import cli
from jobs.evaluate import evaluate
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.evaluation import readings
from pipeline.evaluation.answers import Manner
from pipeline.evaluation.journal import FILE_NAME
from pipeline.session import Session
from schemas.config_file import parse_config
from schemas.errors import (
    BudgetError,
    CacheCorruptError,
    ConfigError,
    ModelError,
    PrefillError,
    VideoNotCachedError,
)
from tests.synthetic import REPOSITORY

MANNER = Manner(max_new_tokens=3)

SHORT = ("What moves?", "Where does it end, and when?", "Who?")


def asked(video_id):
    """Three short questions and one with options about a video."""
    rows = [
        {"video_id": video_id, "kind": f"kind {n}", "question": text, "answer": "left"}
        for n, text in enumerate(SHORT)
    ]
    options = ["red", "green", "blue"]
    last = {"kind": "colour", "question": "Which?", "options": options, "answer": "A"}
    return [*rows, {"video_id": video_id, **last}]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_checkpoint):
    """A cache of three videos with an anchor each, and twelve questions about them."""
    root = tmp_path_factory.mktemp("world")
    names = ["a.mp4", "sub/b.mp4", "c.mp4"]
    (root / "videos" / "sub").mkdir(parents=True)
    for seed, name in enumerate(names):
        path = root / "videos" / name
        write_scene_clip(path, seed=seed, seconds=2.0, width=128, height=96, fps=4)
    config = parse_config({"encoder": {"model": str(tiny_checkpoint), "device": "cpu"}})
    build([str(root / "videos")], root / "cache", config, progress_style="none")
    rows = [row for name in names for row in asked(name)]
    (root / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root


def run_eval(world, out, **options):
    options = {"budgets": [0.3], "thresholds": [0.2], "manner": MANNER, "device": "cpu", **options}
    files = [world / "questions.jsonl"]
    return evaluate(files, world / "cache", out=out, progress_style="none", **options)


def lines_of(out):
    return [json.loads(line) for line in (out / FILE_NAME).read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The folder of a finished evaluation, and its report."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run_eval(world, out, by=["kind"])


def test_every_question_is_answered_at_every_setting_as_ask_answers_it(world, finished):
    out, report = finished
    answers = {(line["setting"], line["question_id"]): line for line in lines_of(out)}
    assert len(answers) == 3 * 12
    settings = {"full": {}, "budget=0.3": {"budget": 0.3}, "threshold=0.2": {"threshold": 0.2}}
    for setting, reading in settings.items():
        for first, name in ((1, "a.mp4"), (5, "sub/b.mp4"), (9, "c.mp4")):
            alone = ask_cache(
                world / "cache", name, SHORT, device="cpu", max_new_tokens=3, **reading
            )
            for number, answer in enumerate(alone, first):
                line = answers[setting, f"questions:{number}"]
                assert line["answer"] == answer.text
                assert line["num_tokens"] == answer.num_tokens
    assert len({line["answer"] for line in answers.values()}) > 3, "or the equality shows nothing"
    assert {row.setting for row in report.rows} == set(settings)


def test_the_report_counts_what_was_read_and_what_was_right(world, finished):
    out, report = finished
    cache = open_cache(world / "cache")
    tokens = [cache.load(video_id, budget=0.3).num_tokens for video_id in cache.ids()]
    before = [cache.row(video_id).tokens_before for video_id in cache.ids()]
    full, small, _ = report.rows[:3]
    assert small.mean_tokens == pytest.approx(sum(tokens) / 3)
    assert small.keep_ratio == pytest.approx(sum(tokens) / sum(before))
    right = {
        name: [line["is_right"] for line in lines_of(out) if line["setting"] == name]
        for name in ("full", "budget=0.3")
    }
    assert full.accuracy.value == sum(right["full"]) / 12
    assert small.difference.value == pytest.approx(
        (sum(right["budget=0.3"]) - sum(right["full"])) / 12
    )
    assert json.loads((out / "results.json").read_text()) == report.to_json()


def test_the_same_run_again_asks_nothing_and_loads_no_model(world, finished, monkeypatch):
    out, report = finished
    body = (out / FILE_NAME).read_bytes()
    monkeypatch.setattr(evaluation, "load_language_model", None)
    assert run_eval(world, out, by=["kind"]) == report
    assert (out / FILE_NAME).read_bytes() == body


def test_answers_that_were_kept_are_scored_by_todays_rules(world, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    path = out / FILE_NAME
    path.write_text(path.read_text().replace('"is_right": false', '"is_right": true'))
    assert run_eval(world, out, by=["kind"]) == finished[1]


def test_a_further_setting_joins_what_is_there(world, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    body = (out / FILE_NAME).read_bytes()
    report = run_eval(world, out, budgets=[5], thresholds=[])
    new = (out / FILE_NAME).read_bytes()
    assert new.startswith(body)
    assert [row.setting for row in report.rows] == ["full", "budget=5"]
    assert len(new.splitlines()) - len(body.splitlines()) == 12


def test_a_torn_run_goes_on_to_the_same_results(world, finished, tmp_path):
    out, report = finished
    torn = tmp_path / "run"
    torn.mkdir()
    body = (out / FILE_NAME).read_bytes()
    (torn / FILE_NAME).write_bytes(body[: len(body) // 2])
    assert run_eval(world, torn, by=["kind"]).rows == report.rows
    key = "question_id", "setting"
    sort = lambda found: sorted(found, key=lambda line: [line[name] for name in key])  # noqa: E731
    assert sort(lines_of(torn)) == sort(lines_of(out))


def test_a_budget_above_what_is_cached_is_not_asked_again(world, tmp_path, monkeypatch):
    opened = []

    class CountedSession(Session):
        def __init__(self, model, tokenizer, video):
            opened.append(video.video_id)
            super().__init__(model, tokenizer, video)

    monkeypatch.setattr(readings, "Session", CountedSession)
    report = run_eval(world, tmp_path / "run", budgets=[1.0, 0.3], thresholds=[])
    assert len(opened) == 3 * 2
    full, same, _ = report.rows
    assert (same.difference.value, same.mean_tokens) == (0, full.mean_tokens)


def test_a_video_encoded_anew_is_asked_again(world, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    path = out / FILE_NAME
    key = open_cache(world / "cache").row("c.mp4").key
    path.write_text(path.read_text().replace(key, "0" * 64))
    before = len(lines_of(out))
    assert run_eval(world, out).rows == finished[1].rows[:3]
    assert len(lines_of(out)) == before + 12
    assert {line["video_id"] for line in lines_of(out)[before:]} == {"c.mp4"}


def test_the_verb_prints_a_table_or_json_and_writes_beside_the_questions(world, tmp_path):
    questions = shutil.copy(world / "questions.jsonl", tmp_path)
    arguments = ["eval", questions, "--cache", world / "cache", "--budget", "5", "--by", "kind"]
    arguments = [*map(str, arguments), "--max-new-tokens", "2", "--device", "cpu"]
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0, table.stderr
    assert table.stdout.splitlines()[0].split()[:3] == ["by", "group", "setting"]
    assert "new answers: 24, in" in table.stderr
    again = CliRunner().invoke(cli, [*arguments, "--json"])
    body = json.loads(again.stdout)
    assert body == json.loads((tmp_path / "questions.eval" / "results.json").read_text())
    assert json.loads(again.stderr)["text"].startswith("new answers: 0, in")


def test_annotations_name_videos_without_folder_or_extension(world, tmp_path):
    path = tmp_path / "action.json"
    rows = [
        {"video": name, "question": "Which?", "candidates": ["x", "y"], "answer": "y", "start": 1}
        for name in ("b", "a.avi", "gone.mp4")
    ]
    path.write_text(json.dumps(rows))
    said = []
    with pytest.raises(VideoNotCachedError, match=r"1 of 3 videos .*'gone.mp4'; --skip-missing"):
        evaluate([path], world / "cache", progress_style="none")
    report = evaluate(
        [path],
        world / "cache",
        by=["task"],
        skip_missing=True,
        progress_style="none",
        say=said.append,
    )
    assert [(row.group, row.num_videos) for row in report.rows][-1] == ("action", 2)
    assert said[0] == "left out 1 of 3 questions: videos that are not cached, or failed: 1"
    assert said[1].startswith("questions about a part of their video (start, end): 2;")
    assert report.about["missing_videos"] == ["gone.mp4"]


def test_a_column_that_only_questions_left_out_have_is_told_before_any_is_asked(world, tmp_path):
    rows = [
        {"video_id": "a.mp4", "question": "Who?", "answer": "x"},
        {"video_id": "gone.mp4", "question": "Who?", "answer": "x", "kind": "who"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(ConfigError, match="no question has the column 'kind'"):
        evaluate([path], world / "cache", by=["kind"], skip_missing=True, progress_style="none")
    assert not (tmp_path / "q.eval").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"budgets": [1.5]}, ConfigError, "^budget=1.5 cannot be read of this cache: .*1.5"),
        ({"thresholds": [0.9]}, BudgetError, "^threshold=0.9 cannot.*needs tokens that were fused"),
        ({"by": ["sort"]}, ConfigError, "no question has the column 'sort'"),
        ({"layout": "mlvu"}, ConfigError, "'candidates' is"),
        ({"manner": Manner(max_new_tokens=4)}, ConfigError, "max_new_tokens 3, now 4"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_refused(world, finished, options, error, said):
    with pytest.raises(error, match=said):
        run_eval(world, finished[0], **options)


def test_questions_about_other_videos_are_refused_even_when_missing_ones_may_be_skipped(
    world, tmp_path
):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"video_id": "z", "question": "Who?", "answer": "x"}))
    with pytest.raises(VideoNotCachedError, match="is it the right cache"):
        evaluate([path], world / "cache", skip_missing=True)


def test_another_checkpoint_is_refused(world, finished, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="belong to another run: model '"):
        run_eval(world, finished[0], model=str(other))
    with pytest.raises(ModelError, match="not those that made this cache"):
        run_eval(world, tmp_path / "run", model=str(other))
    assert run_eval(world, tmp_path / "run", budgets=[], thresholds=[]).rows


def test_several_files_need_a_folder(world):
    with pytest.raises(ConfigError, match="give --out"):
        evaluate([world / "questions.jsonl", world / "questions.jsonl"], world / "cache")


def test_a_folder_in_the_place_of_questions_is_refused_in_one_line(world, monkeypatch):
    monkeypatch.chdir(world)
    result = CliRunner().invoke(cli, ["eval", ".", "--cache", "cache"])
    assert (result.exit_code, result.stderr) == (
        1,
        "error: cannot read questions .: Is a directory\n",
    )


def test_a_prompt_that_cannot_be_asked_is_refused_before_the_model_is_loaded(
    world, tmp_path, monkeypatch
):
    rows = [*asked("a.mp4"), {**asked("c.mp4")[0], "question": "Who says <|im_end|>?"}]
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(evaluation, "load_language_model", None)
    with pytest.raises(PrefillError, match=r"question 'marked:5' about video 'c.mp4'"):
        evaluate([path], world / "cache", device="cpu", progress_style="none")
    assert not lines_of(tmp_path / "marked.eval")


def test_answers_of_another_kind_of_device_are_refused(world, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    path = out / FILE_NAME
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"', 1))
    with pytest.raises(ConfigError, match="another run: device 'cuda', now 'cpu'"):
        run_eval(world, out)


@pytest.mark.parametrize("video_id", ["a.mp4", "sub/b.mp4"])
def test_a_damaged_video_is_told_when_all_others_are_answered_and_mending_it_goes_on(
    world, finished, tmp_path, video_id
):
    damaged = tmp_path / "world"
    shutil.copytree(world, damaged)
    cache = open_cache(damaged / "cache")
    row = cache.row(video_id)
    [shard] = (damaged / "cache").rglob(f"*{row.shard}*")
    with shard.open("r+b") as file:
        file.seek(row.offset + row.num_bytes - 1)
        [last] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 1]))
    out = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(CacheCorruptError, match="1 videos could not be read") as caught:
            run_eval(damaged, out)
        assert repr(video_id) in str(caught.value)
        assert f"tokenreel verify {damaged / 'cache'} --discard" in str(caught.value)
        assert {line["video_id"] for line in lines_of(out)} == set(cache.ids()) - {video_id}
    assert len(lines_of(out)) == 3 * 8
    discarded = CliRunner().invoke(cli, ["verify", str(damaged / "cache"), "--discard"])
    assert discarded.exit_code == 0, discarded.stderr
    assert run_eval(damaged, out, skip_missing=True).rows[0].num_questions == 8
    config = parse_config(
        {"encoder": {"model": open_cache(world / "cache").manifest.about["model"], "device": "cpu"}}
    )
    build([str(damaged / "videos")], damaged / "cache", config, progress_style="none")
    assert run_eval(damaged, out).rows == finished[1].rows[:3]


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_results_of_an_undisturbed_one(world, tmp_path):
    rows = (world / "questions.jsonl").read_text().splitlines(keepends=True) * 3
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(rows))
    command = [
        *(sys.executable, "-m", "jobs", "eval", str(questions), "--cache", str(world / "cache")),
        *("--budget", "0.3", "--device", "cpu", "--json"),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        assert json.loads(process.stderr.readline())["finished"] == 1
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = len(lines_of(tmp_path / "questions.eval"))
    assert 0 < before < 2 * len(rows)
    resumed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"there before: {before};" in resumed.stderr
    whole = evaluate(
        [questions],
        world / "cache",
        budgets=[0.3],
        out=tmp_path / "whole",
        device="cpu",
        progress_style="none",
    )
    assert json.loads(resumed.stdout)["results"] == whole.to_json()["results"]
