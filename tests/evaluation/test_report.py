import pytest

from jobs.render import render_table
from pipeline.evaluation.questions import Question
from pipeline.evaluation.records import FULL, Answered
from pipeline.evaluation.report import MEAN_OF_GROUPS, EvalReport, check_columns, summarize
from schemas.errors import ConfigError

KINDS = ["colour"] * 3 + ["count"]
VIDEOS = ["a", "a", "b", "b"]
TOKENS = {"a": 30, "b": 10}
RIGHT = {FULL: [True, True, False, True], "budget=5": [True, False, False, False]}

QUESTIONS = [
    Question(f"q{n}", video, "?", "x", columns={"kind": kind, "level": n})
    for n, (video, kind) in enumerate(zip(VIDEOS, KINDS, strict=True))
]
ANSWERS = [
    [
        Answered(f"q{n}", setting, video, "k", "x", is_right, tokens or TOKENS[video], 100)
        for n, (video, is_right) in enumerate(zip(VIDEOS, right, strict=True))
    ]
    for (setting, right), tokens in zip(RIGHT.items(), (0, 5), strict=True)
]


def found(rows):
    return {(row.by, row.group, row.setting): row for row in rows}


def test_each_setting_has_its_accuracy_tokens_and_difference():
    full, small = summarize(QUESTIONS, ANSWERS)
    assert (full.num_questions, full.num_videos) == (4, 2)
    assert (full.accuracy.value, small.accuracy.value) == (0.75, 0.25)
    assert (full.mean_tokens, full.keep_ratio) == (20, 0.2)
    assert (small.mean_tokens, small.keep_ratio) == (5, 0.05)
    assert full.difference is None
    assert small.difference.value == -0.5
    assert (small.difference.low, small.difference.high) == (-0.5, -0.5)


def test_groups_and_their_mean_follow_the_whole():
    rows = found(summarize(QUESTIONS, ANSWERS, by=["kind", "level"]))
    colour = rows["kind", "colour", FULL]
    assert colour.accuracy.value == pytest.approx(2 / 3)
    assert (colour.num_questions, colour.num_videos) == (3, 2)
    count = rows["kind", "count", "budget=5"]
    assert (count.num_videos, count.mean_tokens, count.difference.value) == (1, 5, -1)
    mean = rows["kind", MEAN_OF_GROUPS, FULL]
    assert mean.accuracy.value == pytest.approx((2 / 3 + 1) / 2)
    assert ("level", 3, FULL) in rows
    assert ("level", MEAN_OF_GROUPS, FULL) not in rows


def test_groups_stand_in_order_numbers_before_text_and_none_last():
    values = ["b", 10, None, 9]
    questions = [
        Question(f"q{n}", VIDEOS[n], "?", "x", columns={"c": value})
        for n, value in enumerate(values)
    ]
    rows = summarize(questions, ANSWERS[:1], by=["c"])
    assert [row.group for row in rows] == ["all", MEAN_OF_GROUPS, 9, 10, "b", None]
    assert "(none)" in render_table(EvalReport(rows).table())


def by_column(values, name="c"):
    """Rows broken down by a column of these values, one a question."""
    questions = [
        Question(f"q{n}", VIDEOS[n], "?", "x", columns={} if value is None else {name: value})
        for n, value in enumerate(values)
    ]
    return summarize(questions, ANSWERS[:1], by=[name])


def test_questions_without_the_column_do_not_count_in_the_mean_of_groups():
    rows = found(by_column(["b", "b", "g", None]))
    mean = rows["c", MEAN_OF_GROUPS, FULL]
    assert (mean.num_questions, mean.accuracy.value) == (3, 0.5)
    assert rows["c", None, FULL].num_questions == 1


def test_a_column_without_any_value_has_no_mean_of_groups():
    questions = [Question("q", "a", "?", "x", columns={"c": None})]
    rows = summarize(questions, [ANSWERS[0][:1]], by=["c"])
    assert [row.group for row in rows] == ["all", None]


def test_numbers_beyond_those_of_floats_are_groups_in_their_order():
    rows = by_column([10**400, 2.5, -(10**400), 3])
    assert [row.group for row in rows[2:]] == [-(10**400), 2.5, 3, 10**400]


def test_true_and_one_are_two_groups_and_one_and_one_point_nought_the_same():
    rows = by_column([True, 1, 1.0, False])
    assert [(row.group, row.num_questions) for row in rows[2:]] == [(False, 1), (1, 2), (True, 1)]
    assert rows[1].accuracy.value == pytest.approx((1 + 0.5 + 1) / 3)


def test_an_unknown_column_is_refused_with_those_there_are():
    with pytest.raises(
        ConfigError, match=r"no question has the column 'sort'.*: kind, level, video$"
    ):
        check_columns(QUESTIONS, ["kind", "sort"])


def test_every_question_has_its_video_as_a_column():
    rows = found(summarize(QUESTIONS, ANSWERS, by=["video"]))
    assert rows["video", "a", FULL].num_questions == 2
    assert rows["video", "b", FULL].accuracy.value == 0.5


def test_a_column_of_its_own_called_video_is_that():
    rows = by_column(["x", "x", "y", "y"], name="video")
    assert {row.group for row in rows} == {"all", "mean of groups", "x", "y"}


def test_of_one_video_there_is_no_interval():
    report = EvalReport(summarize(QUESTIONS, ANSWERS, by=["video"]))
    shown = {(row["group"], row["setting"]): row for row in report.table()}
    assert shown["a", "budget=5"]["95 %"] == shown["a", "budget=5"]["95 % of it"] == "-"
    assert ".." in shown["all", FULL]["95 %"]
    body = {(row["group"], row["setting"]): row for row in report.to_json()["results"]}
    assert body["a", "budget=5"]["accuracy"] == {"value": 0.5, "low": None, "high": None}
    assert body["a", "budget=5"]["difference"]["low"] is None


def test_the_table_shows_ends_and_the_json_every_number():
    report = EvalReport(summarize(QUESTIONS, ANSWERS), {"model": "m"})
    text = render_table(report.table())
    assert text.splitlines()[-1].split()[-4:] == ["-0.5000", "-0.5000", "..", "-0.5000"]
    assert "by" not in report.table()[0]
    body = report.to_json()
    assert body["model"] == "m"
    assert body["results"][1]["difference"] == {"value": -0.5, "low": -0.5, "high": -0.5}
    assert body["results"][0]["difference"] is None
