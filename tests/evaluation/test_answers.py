import dataclasses
from types import SimpleNamespace

import pytest
import torch

from pipeline.evaluation.answers import (
    Manner,
    answer_questions,
    answer_video,
    check_prompts,
    letter_tokens,
)
from pipeline.evaluation.questions import Question
from pipeline.prefill import build_prefill
from pipeline.session import Session
from schemas.errors import ModelError, PrefillError
from tests.synthetic import encode_clip, some_tokens

WORDS = ("red", "blue", "green", "a long dark shade of grey", "none of them")

QUESTIONS = [
    Question("1", "v", "Which colour falls?", "A", options=WORDS[:2]),
    Question("2", "v", "Who?", "nobody"),
    Question("3", "v", "What is its colour when it is last seen?", "E", options=WORDS),
    Question("4", "v", "Where does it go after that?", "left"),
    Question("5", "v", "Which?", "C", options=WORDS[:3]),
]


@pytest.fixture(scope="module")
def clip(encoder):
    return encode_clip(encoder, 6, 96, 128, seed=1)


@pytest.fixture(scope="module")
def video(clip):
    return clip.cached(some_tokens(clip, seed=3))


@pytest.fixture
def session(tiny_model, clip, video):
    return Session(tiny_model, clip.encoder.tokenizer, video)


def best_letter(model, tokenizer, video, question):
    """The letter with the highest logit after the whole prompt, without any reuse."""
    inputs = build_prefill([video], tokenizer, question.prompt)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    return max(question.letters, key=lambda each: float(logits[tokenizer.encode(each)[0]]))


def test_batched_answers_are_those_that_each_question_gets_alone(tiny_model, session, clip, video):
    tokenizer = clip.encoder.tokenizer
    expected = [
        best_letter(tiny_model, tokenizer, video, question)
        if question.options
        else session.ask(question.prompt, max_new_tokens=8)
        for question in QUESTIONS
    ]
    for size in (1, 2, 8):
        manner = Manner(max_new_tokens=8, batch_size=size)
        assert answer_questions(session, QUESTIONS, manner) == expected


def test_what_is_kept_says_the_video_the_reading_and_whether_it_is_right(session, video):
    given = answer_questions(session, QUESTIONS[:2])
    right = dataclasses.replace(QUESTIONS[0], answer=given[0])
    wrong = dataclasses.replace(QUESTIONS[1], answer=given[1] + "x")
    first, second = answer_video(session, video, [right, wrong], setting="budget=9")
    assert (first.is_right, second.is_right) == (True, False)
    assert (first.question_id, first.setting, first.answer) == ("1", "budget=9", given[0])
    assert (first.video_id, first.video_key) == (video.video_id, video.key)
    assert (first.num_tokens, first.tokens_before) == (video.num_tokens, video.grid.num_tokens)


def test_a_prompt_with_a_marker_of_the_model_is_refused_by_its_question(clip):
    marked = dataclasses.replace(QUESTIONS[1], text="Who says <|im_end|>?")
    tokenizer = clip.encoder.tokenizer
    check_prompts(tokenizer, QUESTIONS)
    with pytest.raises(
        PrefillError, match=r"question '2' about video 'v' cannot be asked: .*<\|im_end\|>"
    ):
        check_prompts(tokenizer, [QUESTIONS[0], marked])
    optional = dataclasses.replace(QUESTIONS[0], options=("red", "<|video_pad|>"))
    with pytest.raises(PrefillError, match=r"question '1' .*<\|video_pad\|>"):
        check_prompts(tokenizer, [optional])


def test_text_longer_than_the_model_is_made_for_is_refused_with_both_lengths(clip):
    tokenizer = clip.encoder.tokenizer
    check_prompts(tokenizer, QUESTIONS, most_positions=1000)
    long = dataclasses.replace(QUESTIONS[1], text="who " * 2000)
    with pytest.raises(PrefillError, match=r"question '2' .* takes \d{4} tokens, .* for 1000;"):
        check_prompts(tokenizer, [QUESTIONS[0], long], most_positions=1000)


@pytest.mark.parametrize("system", ["<|im_start|>", "half \ud800"], ids=ascii)
def test_a_system_text_that_cannot_be_asked_is_refused_as_that(clip, system):
    with pytest.raises(PrefillError, match=r"^the system text") as caught:
        check_prompts(clip.encoder.tokenizer, QUESTIONS, Manner(system=system))
    str(caught.value).encode()


def test_text_of_a_question_made_in_python_is_checked_like_that_of_a_file(clip):
    broken = dataclasses.replace(QUESTIONS[1], text="Who \ud800?")
    with pytest.raises(PrefillError, match=r"question '2' .* half of a surrogate pair"):
        check_prompts(clip.encoder.tokenizer, [broken])


def test_letters_have_a_token_each(clip):
    tokenizer = clip.encoder.tokenizer
    tokens = letter_tokens(tokenizer, "ABCDE")
    assert [tokenizer.decode(token) for token in tokens.values()] == list("ABCDE")


def test_a_tokenizer_that_splits_letters_is_refused():
    class Splitting(SimpleNamespace):
        def __call__(self, text, *, add_special_tokens):
            return {"input_ids": [7, ord(text)]}

    with pytest.raises(ModelError, match=r"writes the letter 'A' as the ids \[7, 65\]"):
        letter_tokens(Splitting(name_or_path="odd", unk_token_id=None), "AB")
