"""The packed forward gives the logits of the plain model on the pixels of one question."""

import numpy as np
import pytest
import torch

from examples.toyworld.checkpoint import fresh_model, train_tokenizer, write_checkpoint
from examples.toyworld.draw import draw_scene
from examples.toyworld.forward import NO_TARGET, PackedForward, pack, prompt_of
from examples.toyworld.render import render
from examples.toyworld.scene import FRAMES_PER_SECOND
from pipeline.encoders import load_encoder
from pipeline.prefill import build_prefill, split_prompt
from schemas.config import EncoderConfig
from tests.synthetic import FPS, EncodedClip, model_inputs, some_tokens

ASKED = [
    [("how many views are there ?", "1"), ("did A flash ?", "no")],
    [("which shape changed colour ?", "none"), ("how many things are there ?", "3")],
]
LENGTH = 16


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    tokenizer = train_tokenizer()
    model = fresh_model(tokenizer, seed=1).eval()
    directory = tmp_path_factory.mktemp("toy") / "model"
    write_checkpoint(directory, model, tokenizer)
    encoder = load_encoder(EncoderConfig(model=str(directory), device="cpu"))
    return tokenizer, model, encoder


@pytest.fixture(scope="module")
def frames():
    return torch.stack([torch.from_numpy(render(draw_scene(seed))) for seed in (1, 2)])


@torch.inference_mode()
def test_tokens_and_deepstack_layers_are_those_of_the_encoder(parts, frames):
    visual, deepstack = PackedForward(parts[1]).visual_tokens(frames)
    for b, video in enumerate(frames):
        [expected] = parts[2].encode([video])
        torch.testing.assert_close(visual[b], expected.embeddings, atol=1e-4, rtol=1e-4)
        found = torch.stack([layer[b] for layer in deepstack])
        torch.testing.assert_close(found, expected.deepstack, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_logits_are_those_of_the_plain_model_on_pixels_for_each_question_alone(parts, frames):
    tokenizer, model, encoder = parts
    forward = PackedForward(model)
    packed = pack(tokenizer, ASKED, length=LENGTH)
    prompt = prompt_of(tokenizer)
    found = forward.logits(prompt, *forward.visual_tokens(frames), packed.input_ids)
    for b, pairs in enumerate(ASKED):
        [tokens] = encoder.encode([frames[b]])
        clip = EncodedClip(frames[b], tokens, np.arange(24), encoder)
        for q, (question, answer) in enumerate(pairs):
            text = split_prompt(tokenizer, question, num_videos=1)[1]
            length = len(text) + 1
            ids = torch.cat([prompt.input_ids, packed.input_ids[b, q, :length]])[None]
            own = model(**model_inputs([clip], ids)).logits[0, -length:]
            assert own.std() > 0.3, "logits must vary, or the comparison proves nothing"
            torch.testing.assert_close(found[b, q, :length], own, atol=2e-4, rtol=2e-4)
            assert packed.targets[b, q, length - 2] == tokenizer(answer)["input_ids"][0]
            assert packed.targets[b, q, length - 1] == tokenizer.eos_token_id
            assert (packed.targets[b, q] != NO_TARGET).sum() == 2


@torch.inference_mode()
def test_logits_of_kept_tokens_are_those_of_a_cache_that_kept_them(parts, frames):
    tokenizer, model, encoder = parts
    forward = PackedForward(model)
    [tokens] = encoder.encode([frames[0]])
    clip = EncodedClip(frames[0], tokens, np.arange(24) * FPS // FRAMES_PER_SECOND, encoder)
    keep_index = some_tokens(clip, seed=1)
    packed = pack(tokenizer, ASKED[:1], length=LENGTH)
    visual, deepstack = forward.visual_tokens(frames[:1])
    found = forward.logits(
        prompt_of(tokenizer, keep_index),
        visual[:, keep_index],
        [layer[:, keep_index] for layer in deepstack],
        packed.input_ids,
    )
    for q, (question, _) in enumerate(ASKED[0]):
        inputs = build_prefill([clip.cached(keep_index)], tokenizer, question)
        expected = model(**inputs).logits[0, -1]
        [asked] = (packed.targets[0, q] != NO_TARGET).nonzero()[:1, 0].tolist()
        torch.testing.assert_close(found[0, q, asked], expected, atol=2e-4, rtol=2e-4)


@torch.inference_mode()
def test_a_question_sees_nothing_of_the_others(parts, frames):
    tokenizer = parts[0]
    forward = PackedForward(parts[1])
    seen = prompt_of(tokenizer), *forward.visual_tokens(frames)
    one = pack(tokenizer, ASKED, length=LENGTH).input_ids
    changed = one.clone()
    changed[:, 0] = pack(tokenizer, ASKED[::-1], length=LENGTH).input_ids[:, 0]
    assert torch.equal(forward.logits(*seen, one)[:, 1], forward.logits(*seen, changed)[:, 1])


def test_a_question_that_is_too_long_is_refused(parts):
    with pytest.raises(ValueError, match=r"takes 1\d columns, not 4"):
        pack(parts[0], ASKED, length=4)
