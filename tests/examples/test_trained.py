"""The trained checkpoint that comes with the project answers what it was trained for."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from examples.toyworld import TRAINED
from examples.toyworld.checkpoint import train_tokenizer
from examples.toyworld.make_videos import draw_scenes, write_world
from examples.toyworld.question_set import balanced
from examples.toyworld.questions import KINDS
from jobs.build import build
from jobs.evaluate import evaluate
from pipeline.cache import open_cache
from pipeline.encoders.checkpoint import quiet_loading
from pipeline.evaluation.answers import Manner
from pipeline.fusion import plan_fusion
from schemas.config_file import parse_config
from schemas.fusion import FusionConfig

NUM_VIDEOS = 96


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Toy videos of the test part, cached with all their tokens, and questions about them."""
    root = tmp_path_factory.mktemp("toy")
    scenes = draw_scenes("test", NUM_VIDEOS, skip=5000)
    write_world(root, scenes, balanced(scenes, per_kind=60, seed=0))
    config = parse_config(
        {
            "encoder": {"model": str(TRAINED), "device": "cpu"},
            "sampling": {"fps": 4.0},
            "fusion": {"method": "none"},
        }
    )
    build([str(root / "videos")], root / "cache", config, progress_style="none")
    return root


def test_it_is_small_and_in_bfloat16():
    assert sum(path.stat().st_size for path in TRAINED.iterdir()) <= 20e6
    with safe_open(TRAINED / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors) < 10e6


def test_it_loads_with_transformers_alone_and_is_a_plain_qwen3_vl():
    with quiet_loading():
        model = AutoModelForImageTextToText.from_pretrained(TRAINED)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert model.config.text_config.rope_parameters["rope_theta"] >= 1e6
    assert len(model.config.vision_config.deepstack_visual_indexes) == 2


def test_its_tokenizer_is_the_one_that_questions_are_packed_with():
    vocabulary = (TRAINED / "tokenizer.json").read_text(encoding="utf-8")
    assert train_tokenizer().backend_tokenizer.to_str(pretty=True) == vocabulary


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_answers_questions_about_videos_it_has_never_seen(world):
    report = evaluate(
        [world / "questions.jsonl"],
        str(world / "cache"),
        model=str(TRAINED),
        device="cpu",
        by=["kind"],
        manner=Manner(max_new_tokens=3),
        progress_style="none",
    )
    mean_of_kinds, *kinds = (row for row in report.rows if row.by == "kind")
    assert len(kinds) == len(KINDS)
    assert mean_of_kinds.num_questions > 500
    assert mean_of_kinds.accuracy.value > 0.97
    for kind in kinds:
        assert kind.accuracy.value > 0.85, "0.9 on 4,089 questions; there are some 50 here"


@pytest.mark.slow
def test_what_ttf_keeps_rises_smoothly_with_the_threshold(world):
    cache = open_cache(world / "cache")
    videos = [cache.load(video_id) for video_id in cache.ids()]
    kept = np.array(
        [
            np.mean(
                [
                    plan_fusion(
                        video.embeddings,
                        video.grid,
                        FusionConfig(method="ttf", threshold=threshold),
                    ).keep_ratio
                    for video in videos
                ]
            )
            for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
        ]
    )
    steps = np.diff(kept)
    assert (steps > 0.005).all(), "no shelf"
    assert steps.max() < 0.4 * (kept[-1] - kept[0]), "no cliff"
