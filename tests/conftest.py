"""Fixtures that several test files share; models are made once per run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("RAY_ADDRESS", None)

import hypothesis
import pytest
import torch

from pipeline.encoders import Qwen3VLEncoder, load_encoder
from pipeline.encoders.checkpoint import quiet_loading
from pipeline.encoders.tiny import write_tiny_checkpoint
from schemas.config import EncoderConfig

hypothesis.settings.register_profile("tokenreel", deadline=None)
hypothesis.settings.load_profile("tokenreel")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_moe_checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny-moe", moe=True)


@pytest.fixture(scope="session")
def encoder(tiny_checkpoint) -> Qwen3VLEncoder:
    return load_encoder(EncoderConfig(model=str(tiny_checkpoint), device="cpu"))


@pytest.fixture(scope="session")
def load_tiny_model(tiny_checkpoint):
    """A function (dtype, attention of the language model) -> the whole tiny model."""
    from transformers import AutoModelForImageTextToText

    loaded = {}

    def load(dtype=torch.float32, attention="sdpa"):
        if (dtype, attention) not in loaded:
            with quiet_loading():
                model = AutoModelForImageTextToText.from_pretrained(
                    tiny_checkpoint,
                    dtype=dtype,
                    attn_implementation={"text_config": attention, "vision_config": "sdpa"},
                )
            loaded[dtype, attention] = model.eval()
        return loaded[dtype, attention]

    return load


@pytest.fixture(scope="session")
def tiny_model(load_tiny_model):
    return load_tiny_model()
