import tracemalloc

import numpy as np
import pytest

from pipeline.evaluation import intervals
from pipeline.evaluation.intervals import mean_intervals, paired_intervals


def some_answers(seed, num_videos=12, num_questions=70):
    """Right or wrong, video and group of each question; videos differ in size and difficulty."""
    rng = np.random.default_rng(seed)
    ease = rng.random(num_videos)
    videos = rng.integers(num_videos, size=num_questions)
    right = rng.random(num_questions) < ease[videos]
    return right, [f"v{number}" for number in videos], list(rng.choice(list("abc"), num_questions))


def slow_interval(values, videos, groups, *, resamples, seed):
    """The same by loops: every drawn video brings its questions, groups are averaged apart."""
    names = list(dict.fromkeys(videos))
    means = []
    for drawn in np.random.default_rng(seed).integers(len(names), size=(resamples, len(names))):
        by_group = {}
        for number in drawn:
            for value, video, group in zip(values, videos, groups, strict=True):
                if video == names[number]:
                    by_group.setdefault(group, []).append(value)
        means.append(np.mean([np.mean(found) for found in by_group.values()]))
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("is_grouped", [False, True])
def test_an_interval_equals_that_of_a_plain_loop(is_grouped):
    right, videos, groups = some_answers(1)
    groups = groups if is_grouped else None
    [found] = mean_intervals(right, videos, groups_Q=groups, resamples=60, seed=3)
    low, high = slow_interval(right, videos, groups or [0] * 70, resamples=60, seed=3)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_a_column_of_ten_thousand_groups_takes_little_memory():
    num_videos = 10_000
    right = np.arange(num_videos) % 3 == 0
    tracemalloc.start()
    try:
        [found, _] = mean_intervals(
            [right, ~right], range(num_videos), groups_Q=range(num_videos), resamples=50
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.value == pytest.approx(right.mean())
    assert found.low < found.value < found.high
    assert peak_bytes < 200e6


def test_drawing_in_parts_covers_every_resample(monkeypatch):
    right, videos, _ = some_answers(2)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 12 * 7)
    [found] = mean_intervals(right, videos, resamples=100, seed=5)
    low, high = slow_interval(right, videos, [0] * 70, resamples=100, seed=5)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_with_one_question_a_video_the_interval_is_that_of_a_share():
    right = np.arange(400) % 4 == 0
    [found] = mean_intervals(right, range(400))
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)


def test_questions_that_stand_or_fall_with_their_video_widen_the_interval():
    right = np.arange(100) % 2 == 0
    [alone] = mean_intervals(np.repeat(right, 4), range(400))
    [together] = mean_intervals(np.repeat(right, 4), np.repeat(np.arange(100), 4))
    assert together.high - together.low == pytest.approx(2 * (alone.high - alone.low), rel=0.1)


def test_a_difference_of_settings_that_agree_is_zero_and_certain():
    right, videos, _ = some_answers(4)
    same, other = paired_intervals([right, ~right], right, videos)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert other.low <= other.value <= other.high


def test_a_paired_difference_is_surer_than_its_accuracies():
    rng = np.random.default_rng(6)
    right, videos, _ = some_answers(6, num_videos=50, num_questions=400)
    worse = right & (rng.random(400) < 0.95)
    [accuracy] = mean_intervals(worse, videos)
    [difference] = paired_intervals(worse, right, videos)
    assert difference.value == pytest.approx(worse.mean() - right.mean())
    assert difference.high - difference.low < (accuracy.high - accuracy.low) / 3


def test_the_mean_of_groups_weighs_each_group_the_same():
    right = [True] * 9 + [False]
    [plain] = mean_intervals(right, range(10))
    [grouped] = mean_intervals(right, range(10), groups_Q=["a"] * 9 + ["b"])
    assert (plain.value, grouped.value) == (0.9, 0.5)


def test_one_video_gives_no_width_and_equal_seeds_give_equal_ends():
    [found] = mean_intervals([True, False], ["v", "v"])
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    right, videos, _ = some_answers(8)
    assert mean_intervals(right, videos, seed=1) == mean_intervals(right, videos, seed=1)
    assert mean_intervals(right, videos, seed=1) != mean_intervals(right, videos, seed=2)


@pytest.mark.parametrize(("values", "videos"), [([True], ["a", "b"]), ([], [])])
def test_lengths_that_differ_and_no_question_are_refused(values, videos):
    with pytest.raises(ValueError, match="expected equal"):
        mean_intervals(values, videos)
