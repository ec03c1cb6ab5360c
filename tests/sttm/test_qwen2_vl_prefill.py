import pytest
import torch

from pipeline.cache import open_cache
from pipeline.encoders.checkpoint import load_tokenizer
from pipeline.prefill import build_prefill
from pipeline.session import Session
from schemas.errors import PrefillError
from schemas.grid import TokenGrid
from tests.sttm.extraction import (
    qwen2_metadata,
    run,
    run_llava,
    some_features,
    write_llava,
    write_video,
)
from tests.sttm.tiny_qwen2_vl import Pixels, make_model, own_inputs

QUESTION = "What falls off the table?"
USER = "<|im_start|>user\n"
DTYPES = [torch.float32, torch.bfloat16]

# The masked and the shortened sequence are summed in another order: about 1e-5 of a logit.
TOLERANCE = 3e-5

PIXELS = Pixels(TokenGrid(3, 4, 5), seed=1)
OTHER = Pixels(TokenGrid(2, 3, 3), seed=2)
LONG = Pixels(TokenGrid(9, 2, 3), seed=3)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return load_tokenizer(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def imported(tmp_path):
    """A function (model, pixels of videos, fusion) -> the cache of their imported features."""

    def import_videos(model, *videos, fusion="none"):
        folder = tmp_path / "F-256_fps-2"
        for number, pixels in enumerate(videos):
            grid = pixels.grid
            metadata = qwen2_metadata(f"v{number}", (grid.frames, grid.height, grid.width))
            write_video(folder, f"v{number}", pixels.features(model), metadata)
        model.config.save_pretrained(tmp_path / "model")
        result = run(folder, tmp_path / "cache", "--model", str(tmp_path / "model"), fusion=fusion)
        assert result.exit_code == 0, result.output
        return open_cache(tmp_path / "cache")

    return import_videos


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_with_every_token_logits_equal_the_models_own_forward_on_pixels(
    tokenizer, imported, dtype, attention
):
    model = make_model(tokenizer, dtype, attention)
    inputs = imported(model, PIXELS).load("v0").prefill(tokenizer, QUESTION)
    own = own_inputs(tokenizer, [PIXELS], USER, QUESTION)
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    expected = model(**own).logits
    assert expected.std() > 0.3, "logits must vary, or the comparison proves nothing"
    assert torch.equal(model(**inputs).logits, expected)


@torch.inference_mode()
def test_positions_are_those_of_the_models_own_rule(tokenizer, model, imported):
    inputs = imported(model, PIXELS).load("v0").prefill(tokenizer, QUESTION)
    own = own_inputs(tokenizer, [PIXELS], USER, QUESTION)
    expected, _ = model.model.get_rope_index(
        own["input_ids"], own["mm_token_type_ids"], video_grid_thw=own["video_grid_thw"]
    )
    assert torch.equal(inputs["position_ids"][1:], expected)


@torch.inference_mode()
def test_several_videos_after_a_system_text_equal_the_models_own_forward(
    tokenizer, model, imported
):
    cache = imported(model, PIXELS, OTHER)
    videos = [cache.load("v0"), cache.load("v1")]
    inputs = build_prefill(videos, tokenizer, QUESTION, system="Be brief.")
    before = f"<|im_start|>system\nBe brief.<|im_end|>\n{USER}"
    own = own_inputs(tokenizer, [PIXELS, OTHER], before, QUESTION)
    assert torch.equal(inputs.input_ids, own["input_ids"])
    assert torch.equal(model(**inputs).logits, model(**own).logits)


@torch.inference_mode()
def test_survivors_alone_give_the_logits_of_the_full_sequence_with_the_rest_masked_out(
    tokenizer, model, imported
):
    video = imported(model, PIXELS, fusion="ttf").load("v0", budget=0.5)
    own = own_inputs(tokenizer, [PIXELS], USER, QUESTION)
    hidden = own["mm_token_type_ids"][0] != 0
    t, y, x = video.coordinates.long().T
    places = (t * PIXELS.grid.height + y) * PIXELS.grid.width + x
    hidden[torch.nonzero(hidden).flatten()[places]] = False
    assert hidden.sum() == PIXELS.grid.num_tokens - video.num_tokens > 0
    positions, _ = model.model.get_rope_index(
        own["input_ids"], own["mm_token_type_ids"], video_grid_thw=own["video_grid_thw"]
    )
    lowest = torch.finfo(torch.float32).min
    mask = torch.full((len(hidden), len(hidden)), lowest).triu(1)
    mask[:, hidden] = lowest
    mask.fill_diagonal_(0)
    full = {**own, "position_ids": positions, "attention_mask": mask[None, None]}
    expected = model(**full).logits[0, ~hidden]
    found = model(**video.prefill(tokenizer, QUESTION)).logits[0]
    assert (found - expected).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_generated_tokens_and_a_sessions_answer_equal_generation_from_pixels(
    tokenizer, model, imported
):
    video = imported(model, PIXELS).load("v0")
    own = own_inputs(tokenizer, [PIXELS], USER, QUESTION)
    expected = model.generate(**own, max_new_tokens=12, do_sample=False)
    model.model.rope_deltas = None
    inputs = video.prefill(tokenizer, QUESTION)
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, do_sample=False), expected)
    new_ids = expected[0, own["input_ids"].shape[1] :]
    session = Session(model, tokenizer, video)
    answers = session.ask_many([QUESTION, "Who?"], max_new_tokens=12)
    assert answers[0] == tokenizer.decode(new_ids, skip_special_tokens=True)
    assert answers[1] == session.ask("Who?", max_new_tokens=12)


def test_beams_equal_those_from_pixels(tokenizer, model, imported):
    inputs = imported(model, PIXELS).load("v0").prefill(tokenizer, QUESTION)
    own = own_inputs(tokenizer, [PIXELS], USER, QUESTION)
    expected = model.generate(**own, max_new_tokens=6, num_beams=3)
    model.model.rope_deltas = None
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, num_beams=3), expected)


@torch.inference_mode()
def test_after_a_long_video_text_goes_on_at_its_largest_position_plus_one(
    tokenizer, model, imported
):
    """transformers goes on inside such a video: at its start plus the longer side of a frame."""
    inputs = imported(model, LONG).load("v0").prefill(tokenizer, QUESTION)
    own = own_inputs(tokenizer, [LONG], USER, QUESTION)
    positions, _ = model.model.get_rope_index(
        own["input_ids"], own["mm_token_type_ids"], video_grid_thw=own["video_grid_thw"]
    )
    is_video = own["mm_token_type_ids"][0] != 0
    last = int(torch.nonzero(is_video)[-1])
    start = int(positions[0, 0, is_video].min())
    text_columns = torch.arange(len(is_video) - last - 1)
    assert positions[0, 0, last + 1] == start + 3
    positions[:, 0, last + 1 :] = start + 9 + text_columns
    assert torch.equal(inputs["position_ids"][1:], positions)
    expected = model(**own, position_ids=positions).logits
    assert torch.equal(model(**inputs).logits, expected)
    assert (model(**own).logits - expected).abs().max() > 0.1


@torch.inference_mode()
def test_a_qwen3_vl_of_the_same_width_does_not_take_tokens_without_deepstack(
    tokenizer, model, tiny_model, imported
):
    inputs = imported(model, PIXELS).load("v0").prefill(tokenizer, QUESTION)
    assert tiny_model.config.text_config.hidden_size == inputs.embeddings.shape[1]
    with pytest.raises(TypeError):
        tiny_model(**inputs)


def test_a_cache_of_llava_is_refused_before_a_prompt_is_written(tokenizer, model, tmp_path):
    folder = tmp_path / "F-128_fps-1"
    write_llava(folder, some_features((3, 2, 2)), num_frames=3)
    assert run_llava(folder, tmp_path / "cache").exit_code == 0
    video = open_cache(tmp_path / "cache").load("v")
    with pytest.raises(PrefillError, match="neither Qwen3-VL nor Qwen2-VL"):
        video.prefill(tokenizer, QUESTION)
    with pytest.raises(PrefillError, match="neither Qwen3-VL nor Qwen2-VL"):
        Session(model, tokenizer, video)
