"""Generation settings of a session: honoured, or refused by name."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from pipeline.prefill import build_prefill
from pipeline.session import Session
from schemas.errors import PrefillError
from tests.synthetic import encode_clip, some_tokens

QUESTIONS = ["What falls off the table?", "Who?"]


@pytest.fixture(scope="module")
def clip(encoder):
    return encode_clip(encoder, 9, 96, 160, seed=1)


@pytest.fixture(scope="module")
def video(clip):
    return clip.cached(some_tokens(clip, seed=3))


@pytest.fixture
def model(tiny_model):
    """The tiny model with settings of its own that a test may change."""
    settings = tiny_model.generation_config
    tiny_model.generation_config = copy.deepcopy(settings)
    yield tiny_model
    tiny_model.generation_config = settings


@pytest.fixture
def session(model, clip, video):
    return Session(model, clip.encoder.tokenizer, video)


def own_answer(model, clip, video, question, **settings):
    """What the model generates by itself with these settings."""
    tokenizer = clip.encoder.tokenizer
    inputs = build_prefill([video], tokenizer, question)
    ids = model.generate(**inputs, **{"do_sample": False, **settings}, tokenizer=tokenizer)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def doors(session, config):
    return [
        lambda: session.ask("Who?", generation_config=config),
        lambda: session.ask_many(QUESTIONS, generation_config=config),
    ]


def refusals(session, config):
    for call in doors(session, config):
        with pytest.raises(PrefillError) as caught:
            call()
        assert "\n" not in str(caught.value)
        yield str(caught.value)


@pytest.mark.parametrize("strings", [2, [3, 5]], ids=["one", "two"])
def test_stop_strings_end_an_answer(session, model, clip, video, strings):
    whole = [session.ask(text, max_new_tokens=12) for text in QUESTIONS]
    places = strings if isinstance(strings, list) else [strings]
    stops = [whole[0][place] for place in places]
    given = stops if isinstance(strings, list) else stops[0]
    config = GenerationConfig(stop_strings=given, max_new_tokens=12, do_sample=False)
    alone = [session.ask(text, generation_config=config) for text in QUESTIONS]
    assert alone == [
        own_answer(model, clip, video, text, stop_strings=given, max_new_tokens=12)
        for text in QUESTIONS
    ]
    assert len(alone[0]) < len(whole[0])
    assert session.ask_many(QUESTIONS, generation_config=config) == alone


@pytest.mark.parametrize("name", ["static", "offloaded", "quantized", "dynamic"])
def test_another_kv_cache_is_refused_by_name(session, model, name):
    for message in refusals(session, GenerationConfig(cache_implementation=name)):
        assert f"cache_implementation = {name!r}" in message
    model.generation_config.cache_implementation = name
    for message in refusals(session, None):
        assert f"cache_implementation = {name!r}" in message


@pytest.mark.parametrize("name", ["max_length", "min_length"])
def test_lengths_that_count_the_prompt_are_refused_by_name(session, name):
    for message in refusals(session, GenerationConfig(**{name: 200})):
        assert message.startswith(f"{name} = 200 counts the tokens of the video and the question")
        assert f"{name[:3]}_new_tokens" in message


def test_lengths_of_the_answer_are_honoured_beside_those_of_the_whole(session):
    expected = session.ask("Who?", max_new_tokens=5)
    config = GenerationConfig(max_length=7, max_new_tokens=5, do_sample=False)
    assert session.ask("Who?", generation_config=config) == expected
    config = GenerationConfig(min_length=7, min_new_tokens=1, max_new_tokens=5, do_sample=False)
    assert session.ask("Who?", generation_config=config) == expected


def test_least_lengths_of_the_answer_are_honoured(session, model, clip, video):
    settings = {"min_new_tokens": 6, "max_new_tokens": 8, "eos_token_id": list(range(128))}
    config = GenerationConfig(do_sample=False, **settings)
    for text in QUESTIONS:
        expected = own_answer(model, clip, video, text, **settings)
        assert session.ask(text, generation_config=config) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"num_return_sequences": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1},
        {"is_assistant": True},
        {"use_mtp": True},
        {"token_healing": True},
    ],
    ids=str,
)
def test_what_a_session_cannot_do_is_refused_by_name(session, model, settings):
    name = next(iter(settings))
    for message in refusals(session, GenerationConfig(**settings)):
        assert f"{name} = {settings[name]!r}" in message
    model.generation_config.update(**settings)
    for message in refusals(session, GenerationConfig()):
        assert f"{name} = {settings[name]!r}" in message


@pytest.mark.parametrize("given", [{"num_beams": 2}, 64, "greedy", GenerationConfig], ids=str)
def test_what_is_no_generation_config_is_refused(session, given):
    for message in refusals(session, given):
        assert "give a transformers GenerationConfig" in message


def test_settings_that_transformers_refuses_are_told_in_one_line(session):
    config = GenerationConfig(num_beams=3, num_beam_groups=2, max_new_tokens=3)
    for message in refusals(session, config):
        assert "transformers cannot generate with these settings" in message


def test_beams_that_the_model_itself_asks_for_are_used(session, model, clip, video):
    expected = [
        own_answer(model, clip, video, text, num_beams=3, max_new_tokens=6) for text in QUESTIONS
    ]
    model.generation_config.num_beams = 3
    assert [session.ask(text, max_new_tokens=6) for text in QUESTIONS] == expected
    assert session.ask_many(QUESTIONS, max_new_tokens=6) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"return_dict_in_generate": True, "output_scores": True},
        {"prefill_chunk_size": 16},
        {"repetition_penalty": 1.3},
        {"max_time": 1000.0},
    ],
    ids=str,
)
def test_other_settings_give_what_the_model_gives(session, model, clip, video, settings):
    config = GenerationConfig(max_new_tokens=6, do_sample=False, **settings)
    for text in QUESTIONS:
        plain = {} if "output_scores" in settings else settings
        expected = own_answer(model, clip, video, text, max_new_tokens=6, **plain)
        assert session.ask(text, generation_config=config) == expected


READING_THE_PROMPT = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 1},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.5},
    {"encoder_repetition_penalty": 3.0},
    {"watermarking_config": {"bias": 9.0, "context_width": 1}},
]


def ids_of_batches(monkeypatch, model):
    """The ids of the prompts with which a model is asked to generate, one tensor for each call."""
    found = []
    generate = model.generate

    def watched(**inputs):
        found.append(inputs["input_ids"])
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    return found


@pytest.mark.parametrize("settings", READING_THE_PROMPT, ids=str)
@pytest.mark.parametrize("place", ["given", "of the model"])
def test_settings_that_read_the_prompt_see_no_padding(session, model, settings, place, monkeypatch):
    config = GenerationConfig(do_sample=False, max_new_tokens=8, min_new_tokens=8)
    config.update(**settings) if place == "given" else model.generation_config.update(**settings)
    alone = [session.ask(text, generation_config=config) for text in QUESTIONS]
    asked = ids_of_batches(monkeypatch, model)
    assert session.ask_many(QUESTIONS, generation_config=config) == alone
    assert [len(ids) for ids in asked] == [1] * len(QUESTIONS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
        {"bad_words_ids": [[5], [6, 7]]},
        {"sequence_bias": [[[7], 5.0], [[8, 9], -5.0]]},
        {"suppress_tokens": [3, 4]},
        {"begin_suppress_tokens": [3, 4]},
        {"guidance_scale": 2.0},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"forced_eos_token_id": 3},
        {"num_beams": 2},
    ],
    ids=str,
)
def test_with_other_settings_questions_share_a_batch_and_answers_stay(
    session, model, settings, monkeypatch
):
    config = GenerationConfig(do_sample=False, max_new_tokens=8, **settings)
    alone = [session.ask(text, generation_config=config) for text in QUESTIONS]
    asked = ids_of_batches(monkeypatch, model)
    assert session.ask_many(QUESTIONS, generation_config=config) == alone
    assert [len(ids) for ids in asked] == [len(QUESTIONS)]


def test_sampling_repeats_with_its_seed_and_the_config_stays_as_it_was(session):
    config = GenerationConfig(do_sample=True, temperature=1.5, max_new_tokens=8)
    before = config.to_dict()
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(session.ask("Who?", generation_config=config))
    assert found[0] == found[1]
    assert config.to_dict() == before
