"""What the accuracy benchmark fuses in memory is what a build with that fusion would cache."""

import sys

import pytest
import torch

from examples.toyworld import TRAINED
from examples.toyworld.make_videos import draw_scenes, write_world
from jobs.build import build
from pipeline.cache import open_cache
from pipeline.encoders.checkpoint import load_tokenizer
from schemas.config import BuildConfig, EncoderConfig, SamplingConfig
from schemas.fusion import METHODS, FusionConfig
from tests.synthetic import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks" / "accuracy"))

from settings import FAR, Setting

pytestmark = pytest.mark.slow

FUSIONS = {
    **{
        name: FusionConfig(method=name, budget=0.25)
        for name, method in METHODS.items()
        if method.budgeted and name != "random"
    },
    "threshold": FusionConfig(method="ttf", threshold=0.9, window=5),
    "anchor first": FusionConfig(method="ttf", budget=0.25, order="anchor_first"),
}


def cached(root, fusion):
    config = BuildConfig(
        sampling=SamplingConfig(fps=4.0),
        encoder=EncoderConfig(model=str(TRAINED), device="cpu"),
        fusion=fusion,
    )
    name = f"{fusion.method}-{fusion.budget}-{fusion.order}"
    build([str(root / "videos")], root / name, config, progress_style="none")
    return open_cache(root / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_world(root, draw_scenes("test", 4, skip=6000), [])
    return root


@pytest.fixture(scope="module")
def whole(world):
    return cached(world, FusionConfig(method="none"))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_video_fused_in_memory_is_the_one_that_is_built(world, whole, name):
    built = cached(world, FUSIONS[name])
    tokenizer = load_tokenizer(str(TRAINED))
    for video_id in whole.ids():
        expected = built.load(video_id)
        found = Setting(name, FUSIONS[name]).read(whole.load(video_id), tokenizer)
        for part in ("features", "coordinates", "input_ids", "position_ids", "visual_index"):
            assert torch.equal(getattr(found, part), getattr(expected, part)), part
        assert found.next_position == expected.next_position


def test_random_tokens_are_others_for_each_video_and_the_same_again():
    setting = Setting("random", FusionConfig(method="random", budget=0.25))
    assert setting.fusion_of("a.mp4") == setting.fusion_of("a.mp4") != setting.fusion_of("b.mp4")


def test_changed_positions_are_those_that_are_named(whole):
    tokenizer = load_tokenizer(str(TRAINED))
    fusion = FusionConfig(method="ttf", budget=0.25)
    video_id = next(iter(whole.ids()))

    def positions(way):
        return Setting(way, fusion, way).read(whole.load(video_id), tokenizer).position_ids

    own = positions("realigned")
    assert positions("renumbered").tolist() == [list(range(own.shape[1]))] * 3
    assert torch.equal(positions("bf16"), own), "below 257 bfloat16 holds every whole number"
    assert torch.equal(positions("far"), own + FAR)
    assert not torch.equal(positions("far bf16"), own + FAR)
