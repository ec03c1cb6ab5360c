"""What is no question, no video, no tokenizer or no model is refused in one line, or works."""

import numpy as np
import pytest
import torch
from transformers import ProcessorMixin

import tokenreel
from pipeline.cache import open_cache
from pipeline.prefill import build_prefill, split_prompt
from pipeline.session import Session
from schemas.errors import ConfigError, ModelError, PrefillError, TokenreelError
from tests.store.sample_cache import build as build_sample
from tests.store.sample_cache import make_sample
from tests.synthetic import encode_clip, some_tokens

QUESTION = "What falls off the table?"
CHAT = [{"role": "user", "content": QUESTION}]
NO_TEXT = {
    "chat messages": CHAT,
    "one message": CHAT[0],
    "a batch of chats": [CHAT, CHAT],
    "parts of a message": [{"type": "text", "text": QUESTION}],
    "a request": {"messages": CHAT, "model": "m"},
    "several questions": [QUESTION, "Who?"],
    "a list of one": [QUESTION],
    "a tuple": (QUESTION,),
    "an empty list": [],
    "None": None,
    "bytes": QUESTION.encode(),
    "a number": 5,
    "a fraction": 0.5,
    "NaN": float("nan"),
    "a truth value": True,
    "an empty dict": {},
    "a set": {QUESTION},
    "ids": torch.tensor([[1, 2]]),
    "an array": np.array([QUESTION]),
    "half a character": "who \ud83d?",
}


class Processor(ProcessorMixin):
    """As a checkpoint's own, which needs torchvision to be loaded."""

    def __init__(self, tokenizer=None):
        super().__init__(tokenizer)


@pytest.fixture(scope="module")
def clip(encoder):
    return encode_clip(encoder, 9, 96, 160, seed=1)


@pytest.fixture(scope="module")
def video(clip):
    return clip.cached(some_tokens(clip, seed=3))


@pytest.fixture(scope="module")
def tokenizer(clip):
    return clip.encoder.tokenizer


@pytest.fixture(scope="module")
def session(tiny_model, tokenizer, video):
    return Session(tiny_model, tokenizer, video)


@pytest.fixture
def cache(tmp_path):
    build_sample(tmp_path, make_sample().pending("v"))
    return open_cache(tmp_path)


def refusal(error, call):
    """The message of what ``call`` raises: one line."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("given", NO_TEXT.values(), ids=NO_TEXT)
def test_a_question_or_system_text_that_is_no_text_is_refused(video, tokenizer, session, given):
    doors = [
        lambda: video.prefill(tokenizer, given),
        lambda: tokenreel.prefill([video], tokenizer, given),
        lambda: split_prompt(tokenizer, given, num_videos=1),
        lambda: session.ask(given),
        lambda: session.ask_many([QUESTION, given]),
        lambda: session.next_logits([given]),
    ]
    for door in doors:
        assert "the question" in refusal(PrefillError, door)
    if given is None:
        return
    for door in [
        lambda: video.prefill(tokenizer, QUESTION, system=given),
        lambda: session.ask(QUESTION, system=given),
        lambda: session.ask_many([QUESTION], system=given),
        lambda: session.next_logits([QUESTION], system=given),
    ]:
        assert "the system text" in refusal(PrefillError, door)


@pytest.mark.parametrize("name", [name for name in NO_TEXT if "mess" in name or "chat" in name])
def test_chat_messages_are_said_not_to_be_taken_yet(video, tokenizer, session, name):
    for door in (lambda q: video.prefill(tokenizer, q), session.ask):
        message = refusal(PrefillError, lambda door=door: door(NO_TEXT[name]))
        assert "chat messages, which are not taken yet: give the text of the question" in message
        assert "system=..." in message


def test_several_questions_are_sent_to_ask_many(video, tokenizer, session):
    for door in (lambda q: video.prefill(tokenizer, q), session.ask):
        assert "Session.ask_many" in refusal(PrefillError, lambda door=door: door(["a?", "b?"]))


@pytest.mark.parametrize(
    "given", [None, 5, b"Who?", {"a": "Who?"}, {"Who?"}, CHAT[0], np.array("Who?")], ids=str
)
def test_questions_that_are_no_list_are_refused(session, given):
    for many in (session.ask_many, session.next_logits):
        assert "a list of questions" in refusal(PrefillError, lambda many=many: many(given))


def test_texts_of_numpy_and_iterators_of_texts_are_questions(session):
    expected = [session.ask(text, max_new_tokens=3) for text in (QUESTION, "Who?")]
    for many in (np.array([QUESTION, "Who?"]), iter([QUESTION, "Who?"]), (QUESTION, "Who?")):
        assert session.ask_many(many, max_new_tokens=3) == expected


def test_an_empty_question_is_asked(video, tokenizer):
    assert video.prefill(tokenizer, "", system="")["input_ids"].shape[1] > 0


@pytest.mark.parametrize(
    "given",
    [0, -1, 1.5, 1.0, float("nan"), "8", None, True, np.bool_(True), np.float64(8)],
    ids=str,
)
def test_counts_that_are_no_whole_numbers_from_1_are_refused(session, given):
    for door in [
        lambda: session.ask_many(["Who?"], batch_size=given),
        lambda: session.next_logits(["Who?"], batch_size=given),
    ]:
        assert "batch_size = " in refusal(PrefillError, door)
    for door in [
        lambda: session.ask("Who?", max_new_tokens=given),
        lambda: session.ask_many(["Who?"], max_new_tokens=given),
    ]:
        assert "max_new_tokens = " in refusal(PrefillError, door)


def test_counts_of_numpy_work(session):
    expected = session.ask("Who?", max_new_tokens=3)
    assert session.ask("Who?", max_new_tokens=np.int64(3)) == expected
    assert session.ask_many(["Who?"], max_new_tokens=3, batch_size=np.int32(2)) == [expected]


def test_a_video_works_as_a_list_of_one(video, tokenizer, tiny_model):
    expected = build_prefill([video], tokenizer, QUESTION).input_ids
    for videos in (video, (video,), iter([video])):
        assert torch.equal(tokenreel.prefill(videos, tokenizer, QUESTION).input_ids, expected)
    asked = [
        Session(tiny_model, tokenizer, given).ask("Who?", max_new_tokens=3)
        for given in (video, [video], iter([video]))
    ]
    assert len(set(asked)) == 1


def test_a_processor_stands_for_its_tokenizer(video, tokenizer, tiny_model, session):
    processor = Processor(tokenizer)
    expected = build_prefill([video], tokenizer, QUESTION).input_ids
    assert torch.equal(video.prefill(processor, QUESTION)["input_ids"], expected)
    asked = Session(tiny_model, processor, video)
    assert asked.tokenizer is tokenizer
    assert asked.ask("Who?", max_new_tokens=3) == session.ask("Who?", max_new_tokens=3)


def test_arguments_in_the_wrong_order_are_refused_with_the_right_order(
    video, tokenizer, tiny_model
):
    doors = {
        "Session(model, tokenizer, video)": [
            lambda: Session(tokenizer, tiny_model, video),
            lambda: Session(Processor(tokenizer), tiny_model, video),
            lambda: Session(tiny_model, video, tokenizer),
            lambda: Session(video, tiny_model, tokenizer),
            lambda: Session(video, tokenizer, tiny_model),
            lambda: Session(tokenizer, video, tiny_model),
        ],
        "prefill(videos, tokenizer, question)": [
            lambda: tokenreel.prefill(tokenizer, [video], QUESTION),
            lambda: tokenreel.prefill(tokenizer, video, QUESTION),
            lambda: tokenreel.prefill([video], QUESTION, tokenizer),
            lambda: tokenreel.prefill(video, tiny_model, QUESTION),
        ],
        "video.prefill(tokenizer, question)": [
            lambda: video.prefill(QUESTION, tokenizer),
            lambda: video.prefill(tiny_model, QUESTION),
            lambda: video.prefill(None, QUESTION),
        ],
    }
    for order, calls in doors.items():
        for call in calls:
            assert order in refusal(TokenreelError, call)


NO_VIDEOS = ["clip.mp4", None, 5, b"v", {}, [None], ["clip.mp4"], torch.zeros(3), torch.tensor(5)]


@pytest.mark.parametrize("given", NO_VIDEOS, ids=str)
def test_what_is_no_loaded_video_is_refused(given, tokenizer, tiny_model):
    for call in [
        lambda: tokenreel.prefill(given, tokenizer, QUESTION),
        lambda: Session(tiny_model, tokenizer, given),
    ]:
        assert "loaded video" in refusal(PrefillError, call)


def test_no_videos_nested_ones_a_path_and_a_cache_say_what_to_do(
    cache, video, tokenizer, tiny_model
):
    for given, message in [
        ([], "at least one video"),
        ((), "at least one video"),
        ([[video, video]], "expected a loaded video"),
        ("cache/a.mp4", "tokenreel.open(cache).load(video_id)"),
        ([video, "cache/a.mp4"], "tokenreel.open(cache).load(video_id)"),
        (cache, "cache.load(video_id)"),
        ([cache], "cache.load(video_id)"),
        (video.prefill(tokenizer, QUESTION), "of type PrefillInputs"),
    ]:
        for call in [
            lambda given=given: tokenreel.prefill(given, tokenizer, QUESTION),
            lambda given=given: Session(tiny_model, tokenizer, given),
        ]:
            assert message in refusal(PrefillError, call)


def test_a_name_instead_of_a_model_or_a_tokenizer_says_how_to_load_it(
    video, tokenizer, tiny_model, tiny_checkpoint
):
    name = str(tiny_checkpoint)
    message = refusal(ModelError, lambda: Session(name, tokenizer, video))
    assert "AutoModelForImageTextToText.from_pretrained" in message
    for call in [lambda: Session(tiny_model, name, video), lambda: video.prefill(name, QUESTION)]:
        assert "AutoTokenizer.from_pretrained" in refusal(PrefillError, call)


@pytest.mark.parametrize("given", [None, 5, {}, object], ids=str)
def test_what_is_no_model_is_refused(given, tokenizer, video):
    assert "expected a loaded transformers model" in refusal(
        ModelError, lambda: Session(given, tokenizer, video)
    )


def test_a_model_without_a_language_head_and_one_without_vision_are_refused(
    tiny_model, tokenizer, video
):
    for model in (tiny_model.model, tiny_model.model.language_model, tiny_model.lm_head):
        assert "takes no mm_encoder_outputs" in refusal(
            ModelError, lambda model=model: Session(model, tokenizer, video)
        )


@pytest.mark.parametrize("given", ["", 5, b"m", ["m"]], ids=str)
def test_a_checkpoint_that_is_no_name_is_refused(given, tiny_model, tokenizer, video):
    assert "expected a local directory or a hub id" in refusal(
        PrefillError, lambda: Session(tiny_model, tokenizer, video, checkpoint=given)
    )


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8, np.int16], ids=str)
def test_budgets_of_numpy_are_counts(cache, number):
    assert cache.load("v", budget=number(7)).num_tokens == 7


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16], ids=str)
def test_fractions_and_thresholds_of_numpy_work(cache, number):
    assert (
        cache.load("v", budget=number(0.25)).num_tokens == cache.load("v", budget=0.25).num_tokens
    )
    theirs = cache.load("v", threshold=number(0.5))
    assert theirs.num_tokens == cache.load("v", threshold=0.5).num_tokens


@pytest.mark.parametrize(
    "budget",
    [
        True,
        np.bool_(True),
        float("nan"),
        np.float32("nan"),
        "5",
        b"5",
        [5],
        np.array([5]),
        1 + 0j,
        np.int64(0),
        np.float64(1.5),
        torch.tensor(5),
    ],
    ids=str,
)
def test_budgets_that_are_no_numbers_are_refused(cache, budget):
    for load in (cache.load, lambda v, **wish: list(cache.stream([v], **wish))):
        assert "budget" in refusal(ConfigError, lambda load=load: load("v", budget=budget))
