import dataclasses

import pytest
import torch
from transformers import GenerationConfig

from pipeline.encoders import VisualTokens
from pipeline.prefill import build_prefill
from pipeline.session import MAX_PREFIXES, Session
from schemas.errors import ModelError, PrefillError
from schemas.manifest import IMPORTED, DecoderIdentity
from tests.synthetic import encode_clip, hybrid_model, some_tokens

QUESTIONS = ["What falls off the table?", "Who?", "What is its colour, and when is it seen?"]


@pytest.fixture(scope="module")
def clip(encoder):
    return encode_clip(encoder, 9, 96, 160, seed=1)


@pytest.fixture(scope="module")
def video(clip):
    return clip.cached(some_tokens(clip, seed=3))


class PrefillCounter:
    """Counts forward passes that bring visual tokens."""

    def __init__(self, model):
        self.count = 0
        self._handle = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.count += bool(kwargs.get("mm_encoder_outputs"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._handle.remove()


def fresh_answer(model, tokenizer, videos, question, system=None):
    """The answer without any reuse."""
    inputs = build_prefill(videos, tokenizer, question, system=system)
    ids = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_answers_equal_fresh_ones_and_the_video_is_prefilled_once(tiny_model, clip, video):
    tokenizer = clip.encoder.tokenizer
    expected = [fresh_answer(tiny_model, tokenizer, [video], text) for text in QUESTIONS]
    session = Session(tiny_model, tokenizer, video)
    with PrefillCounter(tiny_model) as prefills:
        found = [session.ask(text, max_new_tokens=10) for text in QUESTIONS + QUESTIONS]
    assert found == expected + expected
    assert prefills.count == 1
    assert len(set(expected)) > 1, "answers must differ, or the comparison proves nothing"


def test_questions_of_different_length_in_one_batch_get_the_answers_they_get_alone(
    tiny_model, clip, video
):
    session = Session(tiny_model, clip.encoder.tokenizer, video)
    alone = [session.ask(text, max_new_tokens=10) for text in QUESTIONS]
    assert session.ask_many(QUESTIONS, max_new_tokens=10) == alone
    assert session.ask_many(QUESTIONS, max_new_tokens=10, batch_size=2) == alone
    assert session.ask_many([]) == []


def fresh_logits(model, tokenizer, video, question, system=None):
    """Logits of the first token of the answer, without any reuse."""
    inputs = build_prefill([video], tokenizer, question, system=system)
    with torch.inference_mode():
        return model(**inputs).logits[0, -1]


def test_next_logits_of_a_batch_are_those_of_each_question_alone(tiny_model, clip, video):
    tokenizer = clip.encoder.tokenizer
    session = Session(tiny_model, tokenizer, video)
    with PrefillCounter(tiny_model) as prefills:
        found = session.next_logits(QUESTIONS, system="Be brief.")
        in_parts = session.next_logits(QUESTIONS, system="Be brief.", batch_size=2)
    assert prefills.count == 1
    expected = torch.stack(
        [fresh_logits(tiny_model, tokenizer, video, text, "Be brief.") for text in QUESTIONS]
    )
    scale = expected.std()
    assert found.shape == (3, tiny_model.config.text_config.vocab_size)
    assert float((found - expected).abs().max() / scale) < 1e-5
    assert float((in_parts - expected).abs().max() / scale) < 1e-5
    assert float((expected[0] - expected[1]).abs().max() / scale) > 0.1, "or nothing is proven"
    assert session.next_logits([]).shape == (0, found.shape[1])


def test_the_first_token_of_an_answer_is_where_next_logits_are_highest(tiny_model, clip, video):
    tokenizer = clip.encoder.tokenizer
    session = Session(tiny_model, tokenizer, video)
    best = session.next_logits(QUESTIONS).argmax(dim=1)
    firsts = [tokenizer.decode(token, skip_special_tokens=True) for token in best]
    assert session.ask_many(QUESTIONS, max_new_tokens=1) == firsts


def test_another_prompt_head_gets_a_prefix_of_its_own(tiny_model, clip, video):
    tokenizer = clip.encoder.tokenizer
    session = Session(tiny_model, tokenizer, video)
    systems = [None, "Answer in one word.", None, "Answer in one word."]
    with PrefillCounter(tiny_model) as prefills:
        found = [session.ask("Who?", system=text, max_new_tokens=10) for text in systems]
    expected = [fresh_answer(tiny_model, tokenizer, [video], "Who?", text) for text in systems]
    assert found == expected
    assert prefills.count == 2


def test_the_number_of_prefixes_held_is_bounded_and_an_old_one_is_made_again(
    tiny_model, clip, video
):
    session = Session(tiny_model, clip.encoder.tokenizer, video)
    heads = [f"Style {number}." for number in range(MAX_PREFIXES + 1)]
    with PrefillCounter(tiny_model) as prefills:
        for head in [*heads, heads[0]]:
            session.ask("Who?", system=head, max_new_tokens=1)
    assert prefills.count == len(heads) + 1


def test_weights_changed_in_place_get_a_new_prefix(tiny_checkpoint, clip, video):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).eval()
    session = Session(model, clip.encoder.tokenizer, video)
    session.ask("Who?", max_new_tokens=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1.3)
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(-1.3)
    fresh = fresh_answer(model, clip.encoder.tokenizer, [video], "Who?")
    assert session.ask("Who?", max_new_tokens=10) == fresh


def test_several_videos_share_a_session(encoder, tiny_model, clip, video):
    other = encode_clip(encoder, 4, 160, 64, seed=2).cached_whole()
    session = Session(tiny_model, encoder.tokenizer, [video, other])
    expected = fresh_answer(tiny_model, encoder.tokenizer, [video, other], "Which is longer?")
    assert session.ask("Which is longer?", max_new_tokens=10) == expected


def of_another_family(video, model_type):
    """The same tokens without DeepStack, as a cache of features that others extracted has them."""
    encoder = dataclasses.replace(video.manifest.encoder, model_type=model_type, num_deepstack=0)
    imported = dataclasses.replace(
        video.manifest, encoder=encoder, decode=DecoderIdentity(IMPORTED, {})
    )
    return dataclasses.replace(video, manifest=imported)


def test_a_kv_cache_that_can_only_be_copied_serves_a_session(clip):
    """Qwen3.5 has linear attention layers (and no DeepStack)."""
    tokenizer, tokens = clip.encoder.tokenizer, clip.tokens
    plain = VisualTokens(tokens.embeddings, tokens.deepstack[:0], tokens.grid)
    clip = dataclasses.replace(clip, tokens=plain)
    video = of_another_family(clip.cached(some_tokens(clip, seed=3)), "qwen3_5")
    model = hybrid_model(tokenizer)
    expected = [fresh_answer(model, tokenizer, [video], text) for text in QUESTIONS]
    session = Session(model, tokenizer, video)
    assert [session.ask(text, max_new_tokens=10) for text in QUESTIONS] == expected
    assert session.ask_many(QUESTIONS, max_new_tokens=10) == expected
    logits = torch.stack([fresh_logits(model, tokenizer, video, text) for text in QUESTIONS])
    found = session.next_logits(QUESTIONS)
    assert float((found - logits).abs().max() / logits.std()) < 1e-5
    inputs = build_prefill([video], tokenizer, "Who?")
    with torch.inference_mode():
        past = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="crop"):
        past.crop(-1)


def test_a_generation_config_chooses_beams(tiny_model, clip, video):
    session = Session(tiny_model, clip.encoder.tokenizer, video)
    config = GenerationConfig(num_beams=2, do_sample=False)
    answers = [session.ask("Who?", max_new_tokens=6, generation_config=config) for _ in range(2)]
    inputs = build_prefill([video], clip.encoder.tokenizer, "Who?")
    ids = tiny_model.generate(**inputs, max_new_tokens=6, num_beams=2, do_sample=False)
    new_ids = ids[0, inputs.input_ids.shape[1] :]
    expected = clip.encoder.tokenizer.decode(new_ids, skip_special_tokens=True)
    assert answers == [expected, expected]


def test_several_sequences_per_question_are_refused(tiny_model, clip, video):
    session = Session(tiny_model, clip.encoder.tokenizer, video)
    with pytest.raises(PrefillError, match="one answer per question"):
        session.ask(
            "Who?", generation_config=GenerationConfig(num_return_sequences=2, do_sample=True)
        )


def test_bfloat16_answers_repeat_exactly_from_one_reused_prefix(load_tiny_model, clip, video):
    model = load_tiny_model(torch.bfloat16)
    session = Session(model, clip.encoder.tokenizer, video)
    with PrefillCounter(model) as prefills:
        answers = [session.ask(text, max_new_tokens=8) for text in QUESTIONS + QUESTIONS]
    assert prefills.count == 1
    assert answers[:3] == answers[3:]
    assert len(set(answers)) > 1


def test_an_unsuitable_model_and_an_empty_session_are_refused(tiny_model, clip, video):
    with pytest.raises(ModelError, match="mm_encoder_outputs"):
        Session(torch.nn.Linear(1, 1), clip.encoder.tokenizer, video)
    with pytest.raises(PrefillError, match="at least one video"):
        Session(tiny_model, clip.encoder.tokenizer, [])
    with pytest.raises(PrefillError, match="batch_size = 0"):
        Session(tiny_model, clip.encoder.tokenizer, video).ask_many(["Who?"], batch_size=0)
    with pytest.raises(PrefillError, match="got one text"):
        Session(tiny_model, clip.encoder.tokenizer, video).ask_many("Who?")
    with pytest.raises(PrefillError, match="got one text"):
        Session(tiny_model, clip.encoder.tokenizer, video).next_logits("Who?")
