"""What the accuracy benchmark prints, and which answers it takes for today's."""

import sys

from tests.synthetic import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks" / "accuracy"))

import corpus
from tables import markdown, percent, points

from pipeline.evaluation.intervals import Interval


def test_a_difference_is_bold_where_its_interval_leaves_out_nought():
    assert points(Interval(-0.022, -0.028, -0.017)) == "**-2.2 (-2.8..-1.7)**"
    assert points(Interval(0.002, -0.001, 0.005)) == "+0.2 (-0.1..+0.5)"
    assert points(Interval(0.0, 0.0, 0.0)) == "+0.0 (+0.0..+0.0)"
    assert points(None) == "-"


def test_an_end_that_would_read_as_nought_has_another_digit():
    assert points(Interval(0.0057, 0.0004, 0.011)) == "**+0.57 (+0.04..+1.10)**"


def test_nothing_reads_as_less_than_nought_that_is_not():
    assert points(Interval(-0.0001, -0.004, 0.0004)) == "+0.0 (-0.4..+0.0)"


def test_an_accuracy_has_its_interval_in_percent():
    assert percent(Interval(0.9834, 0.9789, 0.9876)) == "98.3 (97.9..98.8)"


def test_a_table_has_its_first_column_to_the_left_and_the_others_to_the_right():
    table = markdown(["method", "50%"], [["ttf", "97.8"]])
    assert table == "| method | 50% |\n|---|---:|\n| ttf | 97.8 |\n"


def test_other_code_between_a_video_and_its_answer_has_another_digest(tmp_path, monkeypatch):
    for package in ("pipeline", "schemas"):
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "inner" / "module.py").write_text("one = 1")
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    digests = {corpus.digest_sources()}
    for package in ("pipeline", "schemas"):
        (tmp_path / package / "inner" / "module.py").write_text("one = 2")
        digests.add(corpus.digest_sources())
    assert len(digests) == 3
