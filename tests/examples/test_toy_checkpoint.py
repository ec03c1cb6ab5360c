"""The toy world's model is a plain checkpoint: stock transformers and a build take it."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from examples.toyworld.checkpoint import fresh_model, train_tokenizer, write_checkpoint
from examples.toyworld.draw import draw_scene
from examples.toyworld.make_videos import write_video
from examples.toyworld.questions import ask
from jobs.build import build
from pipeline.cache import open_cache
from pipeline.encoders.checkpoint import quiet_loading
from pipeline.session import Session
from schemas.config_file import parse_config


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("toy") / "model"
    write_checkpoint(directory, fresh_model(tokenizer, seed=0), tokenizer)
    return directory


def test_every_answer_is_one_token_and_every_word_of_a_question_is_one(tokenizer):
    for seed in range(1000, 1200):
        for question in ask(draw_scene(seed)):
            assert len(tokenizer(question.answer)["input_ids"]) == 1
            assert len(tokenizer(question.text)["input_ids"]) == len(question.text.split())


def test_the_tokenizer_is_the_same_again(tokenizer):
    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_model_is_small(tokenizer):
    model = fresh_model(tokenizer, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 10e6


@pytest.mark.slow
def test_a_toy_video_is_built_whole_and_asked_about(checkpoint, tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(draw_scene(5), tmp_path / "videos" / "toy.mp4")
    config = parse_config(
        {"encoder": {"model": str(checkpoint), "device": "cpu"}, "sampling": {"fps": 4.0}}
    )
    build([str(tmp_path / "videos")], tmp_path / "cache", config, progress_style="none")
    video = open_cache(tmp_path / "cache").load("toy.mp4")
    assert str(video.grid) == "12x6x6"
    with quiet_loading():
        model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    session = Session(model, AutoTokenizer.from_pretrained(checkpoint), video)
    with torch.inference_mode():
        assert isinstance(session.ask("how many views are there ?", max_new_tokens=2), str)
