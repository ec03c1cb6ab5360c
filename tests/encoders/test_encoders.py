import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.encoders import language_model, load_encoder, load_tokenizer
from pipeline.encoders.checkpoint import most_positions, quiet_loading
from pipeline.encoders.language_model import load_language_model, load_matching_tokenizer
from pipeline.encoders.packing import FrameSpan, plan_calls
from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.model_folder import locate_checkpoint
from schemas.config import EncoderConfig, PreprocessConfig
from schemas.errors import ConfigError, ModelError
from tests.synthetic import REPOSITORY, encode_clip, pattern_frames

SHAPES = [(7, 96, 128), (4, 64, 64), (12, 160, 96), (2, 32, 32), (2, 64, 96)]


def clips():
    return [torch.from_numpy(pattern_frames(*shape, seed)) for seed, shape in enumerate(SHAPES)]


def encoder_for(directory, **options):
    return load_encoder(EncoderConfig(model=str(directory), device="cpu", **options))


@pytest.mark.parametrize("moe", [False, True])
def test_tokens_equal_the_models_own_video_features(tmp_path, moe):
    from transformers import AutoModelForImageTextToText

    directory = write_tiny_checkpoint(tmp_path / "model", moe=moe)
    with quiet_loading():
        model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    encoder = encoder_for(directory)
    for index, shape in enumerate([(7, 96, 128), (12, 160, 96), (9, 64, 96)]):
        clip = encode_clip(encoder, *shape, seed=index)
        with torch.inference_mode():
            own = model.model.get_video_features(
                clip.pixel_values, torch.tensor([clip.grid_thw]), return_dict=True
            )
        assert torch.equal(clip.tokens.embeddings, own.pooler_output[0])
        assert len(clip.tokens.deepstack) == 3
        for mine, theirs in zip(clip.tokens.deepstack, own.deepstack_features, strict=True):
            assert torch.equal(mine, theirs[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_patches", [1, 50, 130, 100_000])
def test_chunks_and_packs_of_any_size_give_the_same_bytes(tiny_checkpoint, dtype, max_patches):
    whole = encoder_for(tiny_checkpoint, dtype=dtype)
    bounded = encoder_for(tiny_checkpoint, dtype=dtype, max_patches_per_call=max_patches)
    alone = [whole.encode([clip])[0] for clip in clips()]
    for mine, expected in zip(bounded.encode(clips()), alone, strict=True):
        assert torch.equal(mine.embeddings, expected.embeddings)
        assert torch.equal(mine.deepstack, expected.deepstack)


@given(
    videos=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 30)), max_size=8),
    max_patches=st.integers(1, 100),
)
@settings(deadline=None)
def test_calls_cover_every_token_frame_once_in_order_within_the_limit(videos, max_patches):
    calls = plan_calls(videos, max_patches=max_patches)
    frames = [(s.video, t) for call in calls for s in call for t in range(s.first, s.last)]
    assert frames == [(v, t) for v, (count, _) in enumerate(videos) for t in range(count)]
    for call in calls:
        patches = sum((span.last - span.first) * videos[span.video][1] for span in call)
        single_frame = len(call) == 1 and call[0].last - call[0].first == 1
        assert patches <= max_patches or single_frame


def test_short_videos_share_a_call_and_a_long_one_is_spread():
    assert plan_calls([(2, 10), (2, 10), (9, 10)], max_patches=60) == [
        [FrameSpan(0, 0, 2), FrameSpan(1, 0, 2), FrameSpan(2, 0, 2)],
        [FrameSpan(2, 2, 8)],
        [FrameSpan(2, 8, 9)],
    ]


def test_the_identity_follows_the_weights_and_not_the_path(tmp_path, tiny_checkpoint):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere")
    assert encoder_for(copy).identity == encoder_for(tiny_checkpoint).identity
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    assert (
        encoder_for(other).identity.weights_digest
        != encoder_for(tiny_checkpoint).identity.weights_digest
    )


def test_processor_settings_are_read_as_transformers_reads_them(tmp_path, tiny_checkpoint):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    assert encoder_for(directory).preprocess.max_pixels == 32 * 32 * 768
    size = {"shortest_edge": 4096, "longest_edge": 12345}
    nested = {"video_processor": {"size": size}}
    (directory / "processor_config.json").write_text(json.dumps(nested))
    assert encoder_for(directory).preprocess.max_pixels == 12345
    override = load_encoder(EncoderConfig(model=str(directory)), PreprocessConfig(1, 99))
    assert override.preprocess.max_pixels == 99


def test_missing_vision_weights_are_an_error_and_not_random(tmp_path, tiny_checkpoint):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    del weights["model.visual.blocks.1.mlp.linear_fc1.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="missing or misshapen"):
        encoder_for(directory)


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path, tiny_checkpoint):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(ModelError, match=r"model holds no tokenizer; expected one of"):
        encoder_for(directory)


@pytest.mark.parametrize("load", [load_matching_tokenizer, load_language_model])
def test_a_checkpoint_of_another_kind_than_the_cache_is_refused(tmp_path, encoder, load):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"'bert', this cache was made by a 'qwen3_vl'; give"):
        load(str(tmp_path), encoder.identity)


def test_cut_weights_are_refused_with_what_to_do(tmp_path, tiny_checkpoint, encoder):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"all its files whole; fetch it again") as caught:
        load_language_model(str(directory), encoder.identity)
    assert "\n" not in str(caught.value)


def test_another_checkpoint_is_refused_before_its_language_model_is_loaded(
    tmp_path, encoder, monkeypatch
):
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    monkeypatch.setattr(language_model, "AutoModelForImageTextToText", None)
    with pytest.raises(ModelError, match="not those that made this cache"):
        load_language_model(str(other), encoder.identity, device="cpu")


def test_the_most_positions_of_a_model_are_read_from_its_config(tmp_path, tiny_checkpoint):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert most_positions(tiny_checkpoint) == config["text_config"]["max_position_embeddings"]
    (tmp_path / "config.json").write_text("{}")
    assert most_positions(tmp_path) is None


def test_a_tokenizer_that_writes_other_ids_than_the_cache_is_refused(tiny_checkpoint, encoder):
    other = dataclasses.replace(encoder.identity, tokenizer_digest="0" * 64)
    with pytest.raises(ModelError, match="other ids than this cache"):
        load_matching_tokenizer(str(tiny_checkpoint), other)


def test_pixel_budgets_that_contradict_each_other_are_refused(tiny_checkpoint):
    with pytest.raises(ConfigError, match="min_pixels = 10000000 is above"):
        load_encoder(
            EncoderConfig(model=str(tiny_checkpoint)), PreprocessConfig(min_pixels=10_000_000)
        )


def test_bad_model_arguments_say_what_was_expected(tmp_path, tiny_checkpoint):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        str(empty): "no config.json",
        "./nowhere": "neither an existing directory nor a hub id",
        "nobody/no-such-model": "the hub does not give it",
    }
    for model, message in cases.items():
        with pytest.raises(ModelError, match=message):
            locate_checkpoint(model)
    (empty / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="'llama' is not supported"):
        encoder_for(empty)
    (empty / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        encoder_for(empty)
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used"):
        load_encoder(EncoderConfig(model=str(tiny_checkpoint), device="cuda:99"))


def test_a_language_model_with_other_vision_weights_than_the_cache_is_refused(tmp_path, encoder):
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="not those that made this cache"):
        load_language_model(str(other), encoder.identity, device="cpu")


def test_the_tokenizer_of_a_checkpoint_brings_its_chat_template(tiny_checkpoint):
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    assert "<|video_pad|>" in tokenizer.chat_template


def test_a_tiny_checkpoint_has_the_same_bytes_each_time(tmp_path):
    digests = {
        hashlib.sha256(
            (write_tiny_checkpoint(tmp_path / name) / "model.safetensors").read_bytes()
        ).hexdigest()
        for name in ("a", "b")
    }
    assert len(digests) == 1


@pytest.mark.slow
def test_a_hub_id_is_found_in_the_hubs_cache_and_its_revision_is_recorded(
    tmp_path, tiny_checkpoint
):
    """Offline, as on a cluster node whose hub cache was filled before."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / revision)
    code = (
        "from pipeline.encoders import load_encoder\n"
        "from schemas.config import EncoderConfig\n"
        "print(load_encoder(EncoderConfig(model='someone/tiny', device='cpu')).revision)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == revision
