"""The shortened form of benchmarks/soak_build.py."""

import pytest

from benchmarks.soak_build import soak

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_build_whose_workers_and_drivers_are_killed_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path,
):
    run, verdict = soak(tmp_path, num_videos=36, num_kills=6, seed=2)
    assert run.killed == {"worker": 5, "driver": 1}
    assert verdict.holds, verdict
