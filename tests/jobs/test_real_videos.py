"""All real clips, both runners, through the public interface."""

import pytest
import torch

import tokenreel
from jobs.ask import ask_cache
from jobs.build import build
from schemas.config_file import parse_config
from tests.synthetic import SHARED_VIDEOS

REAL = SHARED_VIDEOS / "real"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"the real clips are not at {REAL}"),
]


@pytest.fixture(scope="module")
def caches(tmp_path_factory, tiny_checkpoint):
    """The same corpus built by both runners."""
    root = tmp_path_factory.mktemp("real")
    for runner in ("local", "ray"):
        sections = {
            "encoder": {"model": str(tiny_checkpoint), "device": "cpu"},
            "run": {
                "runner": runner,
                "workers": 2 if runner == "ray" else 1,
                "videos_at_a_time": 3,
            },
        }
        config = parse_config(sections)
        summary = build([str(REAL)], root / runner, config, progress_style="none")
        assert (summary.tally.done, summary.exit_code) == (9, 0)
    return root


def test_both_runners_cache_all_real_clips_with_the_same_bytes(caches):
    local, on_ray = tokenreel.open(caches / "local"), tokenreel.open(caches / "ray")
    assert list(local.ids()) == list(on_ray.ids())
    assert len(local) == 9
    for video_id in local.ids():
        mine, theirs = local.load(video_id), on_ray.load(video_id)
        assert mine.key == theirs.key
        assert torch.equal(mine.features, theirs.features)
        assert local.row(video_id).head_digest == on_ray.row(video_id).head_digest


def test_every_real_clip_answers_a_question_from_its_cache(caches):
    cache = tokenreel.open(caches / "local")
    for video_id in cache.ids():
        answers = list(
            ask_cache(caches / "local", video_id, ["What is seen?"], device="cpu", max_new_tokens=8)
        )
        assert answers[0].text
        assert (
            answers[0].num_tokens
            == cache.row(video_id).tokens_after
            < cache.row(video_id).tokens_before
        )
