import inspect
import re

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from pipeline.encoders import load_encoder
from pipeline.encoders.checkpoint import quiet_loading
from pipeline.encoders.wrappers import require_encoder_outputs
from pipeline.prefill import build_prefill, split_prompt
from schemas.config import EncoderConfig
from schemas.errors import ModelError, PrefillError
from tests.synthetic import encode_clip, logits_with_hidden, model_inputs, some_tokens

QUESTION = "What falls off the table?"
DTYPES = [torch.float32, torch.bfloat16]
ATTENTIONS = ["sdpa", "eager"]

# The masked and the shortened sequence are summed in another order: about 1e-5 of a logit in
# float32. bfloat16 keeps 8 bits, so the same reordering moves single logits by a few 1e-2.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 6e-2}


@pytest.fixture(scope="module")
def clip(encoder):
    return encode_clip(encoder, 9, 96, 160, seed=1)


@pytest.fixture(scope="module")
def video(clip):
    return clip.cached(some_tokens(clip, seed=3))


def typed_clip(tiny_checkpoint, dtype):
    name = str(dtype).removeprefix("torch.")
    config = EncoderConfig(model=str(tiny_checkpoint), device="cpu", dtype=name)
    return encode_clip(load_encoder(config), 9, 96, 160, seed=1)


def dropped_columns(clip, video, input_ids):
    """Columns of the uncompressed prompt whose token did not survive."""
    pads = torch.nonzero(model_inputs([clip], input_ids)["mm_token_type_ids"][0]).flatten()
    is_dropped = torch.ones(len(pads), dtype=torch.bool)
    t, y, x = video.coordinates.long().T
    is_dropped[(t * video.grid.height + y) * video.grid.width + x] = False
    return pads[is_dropped]


def masked_full_logits(model, clip, video):
    """The oracle: the full sequence, its dropped columns hidden from everybody by a 4-D mask."""
    full = build_prefill([clip.cached_whole()], clip.encoder.tokenizer, QUESTION)
    hidden = torch.zeros(full.input_ids.shape[1], dtype=torch.bool)
    hidden[dropped_columns(clip, video, full.input_ids)] = True
    return logits_with_hidden(model, full, hidden)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_with_nothing_fused_logits_equal_the_models_own_forward_on_pixels(
    load_tiny_model, tiny_checkpoint, dtype, attention
):
    model = load_tiny_model(dtype, attention)
    clip = typed_clip(tiny_checkpoint, dtype)
    inputs = build_prefill([clip.cached_whole()], clip.encoder.tokenizer, QUESTION)
    own = model(**model_inputs([clip], inputs.input_ids)).logits
    assert torch.equal(model(**inputs).logits, own)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_survivors_alone_give_the_logits_of_the_full_sequence_with_the_rest_masked_out(
    load_tiny_model, tiny_checkpoint, dtype, attention
):
    model = load_tiny_model(dtype, attention)
    clip = typed_clip(tiny_checkpoint, dtype)
    video = clip.cached(some_tokens(clip, seed=3))
    expected = masked_full_logits(model, clip, video)
    found = model(**build_prefill([video], clip.encoder.tokenizer, QUESTION)).logits[0]
    assert expected.std() > 0.3, "logits must vary, or the comparison proves nothing"
    assert (found - expected).abs().max() <= TOLERANCE[dtype]


@torch.inference_mode()
def test_a_mixture_of_experts_model_passes_the_same_oracle(tiny_moe_checkpoint):
    from transformers import AutoModelForImageTextToText

    with quiet_loading():
        model = AutoModelForImageTextToText.from_pretrained(tiny_moe_checkpoint).eval()
    clip = typed_clip(tiny_moe_checkpoint, torch.float32)
    video = clip.cached(some_tokens(clip, seed=3))
    found = model(**build_prefill([video], clip.encoder.tokenizer, QUESTION)).logits[0]
    assert (found - masked_full_logits(model, clip, video)).abs().max() <= TOLERANCE[torch.float32]
    whole = build_prefill([clip.cached_whole()], clip.encoder.tokenizer, QUESTION)
    own = model(**model_inputs([clip], whole.input_ids)).logits
    assert torch.equal(model(**whole).logits, own)


@torch.inference_mode()
def test_greedy_tokens_equal_those_of_the_masked_full_sequence(tiny_model, clip, video):
    """Step by step the full sequence grows, masked; the cache generates in one call."""
    tokenizer = clip.encoder.tokenizer
    inputs = video.prefill(tokenizer, QUESTION)
    found = tiny_model.generate(**inputs, max_new_tokens=8, do_sample=False)
    full = build_prefill([clip.cached_whole()], tokenizer, QUESTION)
    hidden = torch.zeros(full.input_ids.shape[1], dtype=torch.bool)
    hidden[dropped_columns(clip, video, full.input_ids)] = True
    ids, positions = full.input_ids, full.position_ids
    for _ in range(found.shape[1] - inputs["input_ids"].shape[1]):
        length = ids.shape[1]
        grown = torch.cat([hidden, torch.zeros(length - len(hidden), dtype=torch.bool)])
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask[:, grown] = torch.finfo(torch.float32).min
        mask.fill_diagonal_(0)
        logits = tiny_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask[None, None],
            mm_encoder_outputs=full["mm_encoder_outputs"],
        ).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=2)
    new = ids.shape[1] - full.input_ids.shape[1]
    assert new > 0
    assert ids[0, -new:].tolist() == found[0, -new:].tolist()


@torch.inference_mode()
def test_several_videos_in_one_prompt_equal_the_models_own_forward(encoder, tiny_model, clip):
    other = encode_clip(encoder, 4, 160, 64, seed=2)
    inputs = build_prefill(
        [clip.cached_whole(), other.cached_whole()], encoder.tokenizer, QUESTION, system="Be brief."
    )
    own = tiny_model(**model_inputs([clip, other], inputs.input_ids)).logits
    assert torch.equal(tiny_model(**inputs).logits, own)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str
)
def test_beams_and_several_sequences_work_twice_in_a_row(tiny_model, clip, video, options):
    inputs = video.prefill(clip.encoder.tokenizer, QUESTION)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(tiny_model.generate(**inputs, max_new_tokens=6, **options))
    assert torch.equal(*results)


@torch.inference_mode()
def test_leaving_positions_out_would_be_silently_wrong_so_they_always_come_along(
    tiny_model, clip, video
):
    inputs = video.prefill(clip.encoder.tokenizer, QUESTION)
    assert set(inputs) == {"input_ids", "attention_mask", "position_ids", "mm_encoder_outputs"}
    without = {name: inputs[name] for name in inputs if name != "position_ids"}
    assert (tiny_model(**without).logits - tiny_model(**inputs).logits).abs().max() > 0.1


def test_the_models_own_position_rule_cannot_read_a_shortened_prompt(tiny_model, clip, video):
    inputs = video.prefill(clip.encoder.tokenizer, QUESTION)
    given = model_inputs([clip], inputs["input_ids"])
    with pytest.raises(RuntimeError):
        tiny_model.model.get_rope_index(
            inputs["input_ids"], given["mm_token_type_ids"], video_grid_thw=given["video_grid_thw"]
        )


@torch.inference_mode()
def test_a_stale_rope_delta_on_the_model_changes_no_answer(tiny_model, clip, video):
    inputs = video.prefill(clip.encoder.tokenizer, QUESTION)
    fresh = tiny_model.generate(**inputs, max_new_tokens=8, do_sample=False)
    tiny_model.model.rope_deltas = torch.tensor([[-1234]])
    stale = tiny_model.generate(**inputs, max_new_tokens=8, do_sample=False)
    tiny_model.model.rope_deltas = None
    assert torch.equal(fresh, stale)


@torch.inference_mode()
def test_each_deepstack_layer_enters_in_its_place(tiny_model, clip, video):
    inputs = video.prefill(clip.encoder.tokenizer, QUESTION)
    right = tiny_model(**inputs).logits

    def logits_with(deepstack):
        output = BaseModelOutputWithDeepstackFeatures(
            pooler_output=[video.embeddings], deepstack_features=deepstack
        )
        return tiny_model(**{**inputs, "mm_encoder_outputs": {"video": output}}).logits

    layers = [[layer] for layer in video.deepstack]
    assert torch.equal(logits_with(layers), right)
    assert (logits_with(layers[::-1]) - right).abs().max() > 0.1
    assert (logits_with([]) - right).abs().max() > 0.1


@torch.inference_mode()
def test_row_0_counts_columns_so_that_no_mask_is_cut_without_an_attention_mask(
    tiny_model, clip, video
):
    inputs = video.prefill(clip.encoder.tokenizer, QUESTION)
    length = inputs["input_ids"].shape[1]
    assert inputs["position_ids"].shape == (4, 1, length)
    assert inputs["position_ids"][0, 0].tolist() == list(range(length))
    unmasked = {name: inputs[name] for name in inputs if name != "attention_mask"}
    found = tiny_model(**unmasked, use_cache=True).logits
    assert torch.equal(found, tiny_model(**inputs, use_cache=True).logits)


def test_the_prompt_reads_as_the_processor_writes_it(clip, video):
    tokenizer = clip.encoder.tokenizer
    text = tokenizer.decode(video.prefill(tokenizer, QUESTION)["input_ids"][0])
    frames = text.split("<|vision_start|>", 1)[1].rsplit("<|vision_end|>", 1)[0]
    assert text.startswith("<|im_start|>user\n<|vision_start|><0.2 seconds><|vision_start|>")
    assert text.endswith(
        f"<|vision_end|><|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert frames.count("seconds>") == clip.tokens.grid.frames
    assert "<1.0 seconds><|vision_start|><|vision_end|>" in frames, "an empty frame keeps its text"


def test_the_prompt_equals_the_own_processors_on_the_same_frames(tiny_checkpoint, clip):
    try:
        import torchvision  # noqa: F401
        from transformers import AutoProcessor
        from transformers.video_utils import VideoMetadata
    except Exception as error:  # a half-installed torchvision raises RuntimeError
        pytest.skip(f"torchvision cannot be imported here ({error})")
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    metadata = VideoMetadata(total_num_frames=90, fps=25.0, frames_indices=clip.frame_indices)
    theirs = processor(
        text=[text],
        videos=[clip.frames.permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        return_tensors="pt",
    )
    mine = build_prefill([clip.cached_whole()], clip.encoder.tokenizer, QUESTION)
    assert torch.equal(theirs["input_ids"], mine.input_ids)


@pytest.mark.parametrize(
    "token", ["<|video_pad|>", "<|image_pad|>", "<|im_end|>", "<|vision_end|>"]
)
def test_a_special_token_in_the_question_or_system_text_is_refused(encoder, token):
    with pytest.raises(PrefillError, match=f"contains {re.escape(token)}"):
        split_prompt(encoder.tokenizer, f"what is {token}?", num_videos=1)
    with pytest.raises(PrefillError, match=f"contains {re.escape(token)}"):
        split_prompt(encoder.tokenizer, "what?", num_videos=1, system=token)


def test_a_template_without_a_place_for_videos_is_refused(encoder, clip, video):
    import copy

    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(PrefillError, match="0 places"):
        video.prefill(tokenizer, QUESTION)
    tokenizer.chat_template = None
    with pytest.raises(PrefillError, match="no chat template"):
        video.prefill(tokenizer, QUESTION)


def test_no_video_is_refused(encoder):
    with pytest.raises(PrefillError, match="at least one video"):
        build_prefill([], encoder.tokenizer, QUESTION)


def test_a_model_that_cannot_take_cached_tokens_is_refused_by_name(tiny_model):
    assert "mm_encoder_outputs" in inspect.signature(tiny_model.forward).parameters
    with pytest.raises(ModelError, match="Linear takes no mm_encoder_outputs"):
        require_encoder_outputs(torch.nn.Linear(1, 1))


def test_features_can_be_moved_to_another_type(clip, video):
    inputs = build_prefill([video], clip.encoder.tokenizer, QUESTION).to("cpu", torch.bfloat16)
    outputs = inputs["mm_encoder_outputs"]["video"]
    assert outputs.pooler_output[0].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == inputs["position_ids"].dtype == torch.int64
