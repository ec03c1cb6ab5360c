"""Asking from pixels without a cache gives what a cache of all tokens gives."""

import torch
from transformers import AutoTokenizer

from jobs.build import build
from pipeline.cache import open_cache
from pipeline.decode import FrameReader
from pipeline.decode.clips import write_scene_clip
from pipeline.encoders import load_encoder
from pipeline.pixels import pixel_inputs
from pipeline.prefill import build_prefill
from schemas.config import DecodeConfig, EncoderConfig, SamplingConfig
from schemas.config_file import parse_config


def test_ids_and_logits_are_those_of_a_cache_that_keeps_every_token(
    tiny_checkpoint, tiny_model, tmp_path
):
    path = tmp_path / "videos" / "clip.mp4"
    path.parent.mkdir()
    write_scene_clip(path, seed=3, seconds=2.0, width=128, height=96, fps=12)
    settings = {
        "encoder": {"model": str(tiny_checkpoint), "device": "cpu"},
        "sampling": {"fps": 4.0},
        "fusion": {"method": "none"},
    }
    build([str(path)], tmp_path / "cache", parse_config(settings), progress_style="none")
    cache = open_cache(tmp_path / "cache")
    [video_id] = cache.ids()
    encoder = load_encoder(EncoderConfig(model=str(tiny_checkpoint), device="cpu"))
    with FrameReader(DecodeConfig(), SamplingConfig(fps=4.0)) as reader:
        inputs = pixel_inputs(path, reader, encoder, "What moves?")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    expected = build_prefill([cache.load(video_id)], tokenizer, "What moves?")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.inference_mode():
        found = tiny_model(**inputs).logits
        cached = tiny_model(**expected).logits
    torch.testing.assert_close(found, cached, atol=2e-5, rtol=2e-5)
