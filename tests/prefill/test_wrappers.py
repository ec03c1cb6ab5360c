"""The model is found inside what people put round it, and adapters take effect."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from pipeline.encoders.checkpoint import quiet_loading
from pipeline.encoders.wrappers import find_model
from pipeline.prefill import build_prefill
from pipeline.session import Session
from schemas.errors import ModelError
from tests.synthetic import encode_clip, some_tokens

QUESTIONS = ["What falls off the table?", "Who?"]


class AdaptedLinear(nn.Module):
    """A layer as PEFT's tuners put it in the place of another, with their public attributes."""

    def __init__(self, base_layer, seed):
        super().__init__()
        self.base_layer = base_layer
        generator = torch.Generator().manual_seed(seed)
        shift = torch.randn(base_layer.out_features, generator=generator)
        self.shift = nn.Parameter(shift, requires_grad=False)
        self.active_adapters = ["default"]
        self.disable_adapters = False
        self.merged_adapters = []
        self.scaling = {"default": 1.0}

    def forward(self, hidden):
        output = self.base_layer(hidden)
        if self.disable_adapters or "default" not in self.active_adapters:
            return output
        return output + self.scaling["default"] * self.shift


class Tuner(nn.Module):
    """As PEFT's LoraModel: holds the model whose layers it replaced."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        for number, layer in enumerate(model.model.language_model.layers):
            layer.mlp.down_proj = AdaptedLinear(layer.mlp.down_proj, seed=number)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Adapted(nn.Module):
    """As PEFT's PeftModel."""

    def __init__(self, model):
        super().__init__()
        self.base_model = Tuner(model)
        self.num_calls = 0

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        self.num_calls += 1
        return self.base_model(*args, **kwargs)

    def generate(self, *args, **kwargs):
        return self.base_model.model.generate(*args, **kwargs)

    @property
    def layers(self):
        return [x for x in self.modules() if isinstance(x, AdaptedLinear)]


@pytest.fixture(scope="module")
def clip(encoder):
    return encode_clip(encoder, 9, 96, 160, seed=1)


@pytest.fixture(scope="module")
def video(clip):
    return clip.cached(some_tokens(clip, seed=3))


@pytest.fixture(scope="module")
def tokenizer(clip):
    return clip.encoder.tokenizer


@pytest.fixture
def fresh_model(tiny_checkpoint):
    with quiet_loading():
        return AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).eval()


@pytest.fixture
def one_process():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    """Compiled functions run as they were written, in no time."""
    with torch.compiler.set_stance("force_eager"):
        yield


def answers(model, tokenizer, video):
    return Session(model, tokenizer, video).ask_many(QUESTIONS, max_new_tokens=8)


def fresh_answer(model, tokenizer, video, question):
    inputs = build_prefill([video], tokenizer, question)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: nn.DataParallel(torch.compile(model)),
    ],
    ids=["compiled", "parallel", "compiled parallel", "parallel compiled"],
)
def test_a_compiled_or_replicated_model_answers_as_the_model_inside(
    tiny_model, tokenizer, video, wrap
):
    model = wrap(tiny_model)
    assert find_model(model).plain is find_model(model).runs is tiny_model
    assert answers(model, tokenizer, video) == answers(tiny_model, tokenizer, video)


def test_a_model_of_distributed_training_answers_as_the_model_inside(
    fresh_model, tokenizer, video, one_process
):
    expected = answers(fresh_model, tokenizer, video)
    replica = nn.parallel.DistributedDataParallel(fresh_model)
    assert answers(replica, tokenizer, video) == expected


@pytest.mark.parametrize("way", ["its call", "its forward"])
def test_a_model_compiled_in_place_answers(fresh_model, tokenizer, video, tiny_model, way):
    if way == "its call":
        fresh_model.compile()
    else:
        fresh_model.forward = torch.compile(fresh_model.forward)
    found = Session(fresh_model, tokenizer, video).ask("Who?", max_new_tokens=2)
    assert found == Session(tiny_model, tokenizer, video).ask("Who?", max_new_tokens=2)


@pytest.mark.parametrize(
    "wrap",
    [lambda model: model, torch.compile, nn.DataParallel],
    ids=["alone", "compiled", "parallel"],
)
def test_adapters_take_effect_through_their_wrapper(
    fresh_model, tiny_model, tokenizer, video, wrap
):
    adapted = Adapted(fresh_model)
    found = find_model(wrap(adapted))
    assert (found.runs, found.plain) == (adapted, fresh_model)
    expected = [fresh_answer(adapted, tokenizer, video, text) for text in QUESTIONS]
    assert answers(wrap(adapted), tokenizer, video) == expected
    assert adapted.num_calls > 0, "the wrapper's own forward is used"
    assert expected != answers(tiny_model, tokenizer, video), "or nothing is proven"


def test_adapters_round_a_compiled_model_take_effect(fresh_model, tokenizer, video):
    adapted = Adapted(fresh_model)
    expected = [fresh_answer(adapted, tokenizer, video, text) for text in QUESTIONS]
    adapted.base_model.model = torch.compile(fresh_model)
    assert find_model(adapted).plain is fresh_model
    assert answers(adapted, tokenizer, video) == expected


def test_a_wrapper_without_generate_uses_that_of_the_model_inside(fresh_model, tokenizer, video):
    tuner = Tuner(fresh_model)
    wrapper = nn.Module()
    wrapper.base_model = tuner
    wrapper.forward = tuner.forward
    assert answers(wrapper, tokenizer, video) == [
        fresh_answer(fresh_model, tokenizer, video, text) for text in QUESTIONS
    ]


@pytest.mark.parametrize("change", ["switched off", "another one", "weaker"])
def test_a_change_of_adapters_gets_a_new_prefix(fresh_model, tokenizer, video, change):
    adapted = Adapted(fresh_model)
    session = Session(adapted, tokenizer, video)
    before = session.next_logits(["Who?"])
    for layer in adapted.layers:
        if change == "switched off":
            layer.disable_adapters = True
        elif change == "another one":
            layer.active_adapters = ["other"]
        else:
            layer.scaling["default"] = 0.5
    after = session.next_logits(["Who?"])
    assert torch.equal(after, Session(adapted, tokenizer, video).next_logits(["Who?"]))
    assert (after - before).abs().max() > 0.1, "or nothing is proven"


def test_an_adapter_that_writes_before_the_prompt_is_refused(fresh_model, tokenizer, video):
    adapted = Adapted(fresh_model)

    class PrefixTuningConfig:
        is_prompt_learning = True

    adapted.active_peft_config = PrefixTuningConfig()
    with pytest.raises(ModelError, match="PrefixTuningConfig puts columns of its own before"):
        Session(adapted, tokenizer, video)


def test_a_wrapper_that_is_not_known_is_named(tiny_model, tokenizer, video):
    class Engine(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(
        ModelError, match=r"^Engine takes no mm_encoder_outputs.*inside torch\.comp"
    ):
        Session(Engine(tiny_model), tokenizer, video)


def test_a_copy_of_a_model_is_checked_anew_and_answers(tiny_model, tokenizer, video):
    assert answers(copy.deepcopy(tiny_model), tokenizer, video) == answers(
        tiny_model, tokenizer, video
    )
