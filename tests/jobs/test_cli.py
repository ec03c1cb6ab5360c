import json
import re
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from examples.toyworld.scene import FIRST_SEEDS
from jobs.cli import cli
from jobs.demo import THRESHOLD
from jobs.render import MAX_CELL
from schemas.fusion import METHODS
from tests.synthetic import REPOSITORY

DEMO_BUILD = ("build", "{root}/videos", "--out", "{root}/c", "--model", "{root}/model")

VIDEO = f"toy_{FIRST_SEEDS['demo']:07}.mp4"

VERBS = (
    *("plan", "build", "submit", "methods", "import-sttm"),
    *("status", "query", "show", "ask", "eval", "verify", "compact", "demo"),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a finished demo, and what it printed."""
    root = tmp_path_factory.mktemp("demo")
    result = CliRunner().invoke(cli, ["demo", "--out", str(root)], catch_exceptions=False)
    assert result.exit_code == 0
    return root, result.stdout


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_verbs_are_these():
    assert tuple(cli.commands) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"tokenreel {verb} " in result.stdout.split("Example:")[1]


def test_the_flags_of_build_are_frozen():
    flags = {option for p in cli.commands["build"].params for option in p.opts if option[0] == "-"}
    assert " ".join(sorted(flags)) == (
        "--address --budget --config --cpus-per-worker --decoder --device --dtype --encoding --fps "
        "--fusion --gpus-per-worker --json --limit --max-failures --max-frames --model "
        "--num-frames --out --retry-failed --runner --threshold --window --workers"
    )


def test_the_flags_of_eval_are_frozen():
    flags = {option for p in cli.commands["eval"].params for option in p.opts if option[0] == "-"}
    assert " ".join(sorted(flags)) == (
        "--batch-size --budget --by --cache --device --json --layout --max-new-tokens --model "
        "--out --skip-missing --system --threshold"
    )


def test_the_reference_in_the_docs_is_the_commands_own_help():
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, 'docs'); "
            "from make_cli_reference import reference; sys.stdout.write(reference())",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made == (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "{videos}", "--out", "{cache}", "--fps", "4", "--threshold", str(THRESHOLD)],
        [
            *("plan", "{videos}", "--out", "{cache}", "--model", "{model}"),
            *("--fps", "4", "--threshold", str(THRESHOLD)),
        ],
        ["status", "{cache}"],
        ["query", "{cache}", "keep_ratio < 2"],
        ["compact", "{cache}", "--dry-run"],
    ],
    ids=lambda a: a[0],
)
def test_light_verbs_import_neither_torch_nor_ray_nor_transformers(demo, arguments):
    root, _ = demo
    places = {name: root / name for name in ("videos", "cache", "model")}
    arguments = [argument.format(**places) for argument in arguments]
    code = (
        "import sys, tokenreel\n"
        "from jobs.cli import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines()[-1] == "[]"


def test_the_demo_tells_every_step_with_its_time(demo):
    _, text = demo
    for step in (
        "rendered 4 videos",
        "copied a small Qwen3-VL",
        "encoded 4 videos",
        "queried the index",
    ):
        assert f"s] {step}" in text
    assert "next: tokenreel query" in text


def test_the_demo_answers_a_question_of_every_kind_rightly_from_the_cache_and_again(demo):
    _, text = demo
    table = text.split("from the pixels:\n")[1].splitlines()
    heads, lines = table[0].split(), [re.split(r"  +", line) for line in table[2:14]]
    assert heads[:4] == ["question", "truth", "cache", "again"]
    for line in lines:
        assert line[1] == line[2] == line[3], line[0]
        kept, whole = map(int, line[5].split(" of "))
        assert kept < whole
    assert "12 of 12 answers from the cache are right, the second time too." in text


@pytest.mark.slow
def test_the_demo_again_finds_its_videos_cached(demo, tmp_path):
    root = shutil.copytree(demo[0], tmp_path / "demo")
    again = run("demo", "--out", root).stdout
    assert "s] all 4 videos were cached before" in again
    assert "12 of 12 answers from the cache are right" in again


@pytest.mark.slow
def test_the_demo_sets_a_cache_of_other_settings_aside_and_builds_anew(demo, tmp_path):
    root = shutil.copytree(demo[0], tmp_path / "demo", ignore=shutil.ignore_patterns("cache"))
    one_frame_a_second = ("--model", root / "model", "--fps", "1")
    run("build", root / "videos" / VIDEO, "--out", root / "cache", *one_frame_a_second)
    again = run("demo", "--out", root).stdout
    assert f"moved a cache of an earlier version to {root / 'cache.1'}" in again
    assert "12 of 12 answers from the cache are right" in again
    assert json.loads(run("status", root / "cache.1", "--format", "json").stdout)["videos"] == 1


def test_status_query_show_and_verify_read_the_cache(demo):
    cache = demo[0] / "cache"
    status = run("status", cache, "--format", "json")
    assert json.loads(status.stdout)["videos"] == 4
    assert run("status", cache, "--failed").stdout == "(no rows)\n"
    found = run("query", cache, "SELECT count(*) AS n FROM index", "--format", "csv")
    assert found.stdout == "n\n4\n"
    shown = run("show", cache, VIDEO, "--map").stdout
    assert "keep_ratio" in shown
    assert "anchor" in shown
    covered = run("show", cache, VIDEO, "--coverage").stdout
    lowest = float(covered.split("\nall ")[1].split()[3])
    assert THRESHOLD < lowest <= 1.0
    verified = run("verify", cache)
    assert (verified.exit_code, verified.stderr) == (0, "0 damaged, 0 stray files\n")


def test_the_table_of_verify_shows_the_whole_cause(demo, tmp_path):
    cache = shutil.copytree(demo[0] / "cache", tmp_path / "cache")
    (shard, *_) = (cache / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-10])
    found = run("verify", cache, "--format", "json").stdout.splitlines()
    causes = [json.loads(line)["error"] for line in found]
    assert any(len(cause) > MAX_CELL for cause in causes)
    shown = run("verify", cache).stdout
    assert all(" ".join(cause.split()) in shown for cause in causes)


def test_the_docs_carry_the_table_of_methods():
    table = run("methods").stdout.strip()
    assert len(table.splitlines()) == 2 + len(METHODS)
    assert f"```\n{table}\n```" in (REPOSITORY / "docs" / "fusion.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fusion", "evs", "--threshold", "0.8"], "'evs' has no use for a threshold"),
        (["--fusion", "sttm", "--window", "5"], "'sttm' has no use for --window"),
        (["--fusion", "none", "--budget", "0.5"], "cannot keep a budget"),
    ],
)
def test_flags_that_a_fusion_method_has_no_use_for_are_refused(demo, tmp_path, flags, said):
    result = run("plan", demo[0] / "videos", "--out", tmp_path / "c", *flags)
    assert result.exit_code == 1
    assert said in result.stderr


def test_verify_names_damage_and_exits_with_3(demo, tmp_path):
    cache = shutil.copytree(demo[0] / "cache", tmp_path / "cache")
    fragment, *_ = (cache / "index").iterdir()  # several where the build took long
    fragment.write_bytes(b"no parquet")
    found = run("verify", cache, "--format", "json")
    assert (found.exit_code, found.stderr.splitlines()[0]) == (3, "1 damaged, 0 stray files")
    assert found.stderr.splitlines()[-1] == f"next: tokenreel verify {cache} --discard"
    assert json.loads(found.stdout)["finding"] == "damaged_fragment"


def test_a_query_without_rows_prints_no_line_but_a_csv_header(demo):
    cache = demo[0] / "cache"
    assert run("query", cache, "keep_ratio > 9", "--format", "json").stdout == ""
    csv = run("query", cache, "SELECT video_id, fps FROM index WHERE fps > 999", "--format", "csv")
    assert csv.stdout == "video_id,fps\n"
    nan = run("query", cache, "SELECT 'nan'::DOUBLE AS x FROM index LIMIT 1", "--format", "json")
    assert json.loads(nan.stdout) == {"x": None}


def test_ask_prints_one_answer_per_question_and_reads_less_with_a_budget(demo):
    cache = demo[0] / "cache"
    asked = run("ask", cache, VIDEO, "Who?", "Where?", "--json", "--max-new-tokens", 4)
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [answer["question"] for answer in answers] == ["Who?", "Where?"]
    less = run("ask", cache, VIDEO, "Who?", "--json", "--budget", "20", "--max-new-tokens", 4)
    answer = json.loads(less.stdout)
    assert answer["num_tokens"] == 20
    assert answer["bytes_read"] < answers[0]["bytes_read"]


def test_build_resumes_and_says_what_comes_next(demo):
    root, _ = demo
    arguments = ["build", root / "videos", "--out", root / "cache", "--model", root / "model"]
    arguments += ["--fps", "4", "--device", "cpu", "--threshold", THRESHOLD]
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "done 0/0 videos" in done.stderr
    assert "4 were done before" in done.stderr
    assert "next: tokenreel query" in done.stderr
    as_json = run(*arguments, "--json")
    assert json.loads(as_json.stdout)["done_before"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "{root}/nowhere"], "no cache at"),
        (["show", "{root}/cache", "toy_9.mp4"], "toy_"),
        (["query", "{root}/cache", "keepratio < 1"], "keep_ratio"),
        (["build", "{root}/none", "--out", "{root}/c", "--model", "x/y"], "does not exist"),
        (
            ["build", "{root}/videos", "--out", "{root}/c", "--model", "{root}/videos"],
            "config.json",
        ),
        (
            ["build", "{root}/videos", "--out", "{root}/c", "--model", "m", "--threshold", "7"],
            "(-1, 1]",
        ),
        (
            ["build", "{root}/videos", "--out", "{root}/cache", "--model", "{root}/model"],
            "sampling.fps",
        ),
        (["plan", "{root}/videos", "--out", "{root}/c", "--config", "{root}/no.toml"], "no.toml"),
        (["ask", "{root}/cache", VIDEO, "?", "--model", "{root}/videos"], "config.json"),
        (["ask", "{root}/cache", VIDEO, "?", "--threshold", "0.99"], "0.95"),
        (["ask", "{root}/cache", VIDEO, "<|im_end|>"], "contains <|im_end|>"),
        (["query", "{root}/cache", " "], "the query is empty"),
        (
            [
                "build",
                "{root}/videos",
                "--out",
                "{root}/c",
                "--model",
                "{root}/model",
                "--device",
                "meta",
            ],
            "holds no values",
        ),
        (["demo", "--out", "{root}/model/config.json"], "cannot make the folder"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line_and_exit_code_1(demo, arguments, message):
    result = run(*[argument.format(root=demo[0]) for argument in arguments])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.fixture(params=["/gone/model", "gone/model", "./gone", "{root}/videos"])
def moved(request, demo, tmp_path):
    """The demo's cache, and its model in another place than the cache says."""
    cache = shutil.copytree(demo[0] / "cache", tmp_path / "cache")
    body = json.loads((cache / "manifest.json").read_text())
    body["about"]["model"] = request.param.format(root=demo[0])
    (cache / "manifest.json").write_text(json.dumps(body))
    return cache, demo[0] / "model"


def test_a_cache_whose_model_moved_asks_for_its_place(moved, tmp_path):
    cache, model = moved
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"video_id": VIDEO, "question": "Who?", "answer": "x"}))
    for command in [
        ("ask", cache, VIDEO, "Who?"),
        ("eval", questions, "--cache", cache),
        ("show", cache, VIDEO, "--coverage"),
    ]:
        result = run(*command)
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stderr.startswith("error: model ")
        assert f"{cache} names it as the model that made it" in result.stderr
        assert "give its place with --model" in result.stderr
    assert run("ask", cache, VIDEO, "Who?", "--model", model).exit_code == 0


def test_an_unknown_setting_is_refused_with_a_suggestion(demo, tmp_path):
    (tmp_path / "build.toml").write_text("[fusion]\ntreshold = 0.5\n")
    result = run("plan", demo[0] / "videos", "--out", tmp_path, "--config", tmp_path / "build.toml")
    assert result.exit_code == 1
    assert "did you mean 'threshold'?" in result.stderr


def test_flags_beat_the_file_and_the_file_beats_the_defaults(demo, tmp_path):
    (tmp_path / "build.toml").write_text("[fusion]\nthreshold = 0.5\nwindow = 5\n")
    result = run(
        "plan",
        demo[0] / "videos",
        "--out",
        tmp_path / "c",
        "--config",
        tmp_path / "build.toml",
        "--threshold",
        "0.6",
        "--json",
    )
    fusion = json.loads(result.stdout)["config"]["fusion"]
    assert (fusion["threshold"], fusion["window"], fusion["order"]) == (0.6, 5, "chronological")


def test_a_missing_model_is_a_usage_error(demo):
    result = run("build", demo[0] / "videos", "--out", demo[0] / "c")
    assert result.exit_code == 2
    assert "--model" in result.stderr
