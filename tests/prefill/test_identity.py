"""A checkpoint that did not make the cache is refused, by what its files say."""

import copy
import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from pipeline.encoders import load_encoder, origin
from pipeline.encoders.checkpoint import quiet_loading
from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.prefill import build_prefill
from pipeline.session import Session
from schemas.config import EncoderConfig
from schemas.errors import ModelError, PrefillError
from schemas.manifest import IMPORTED, DecoderIdentity
from tests.synthetic import REPOSITORY, encode_clip, some_tokens

QUESTION = "Who?"


def load(directory, **options):
    with quiet_loading():
        return AutoModelForImageTextToText.from_pretrained(directory, **options).eval()


def encode(directory, *, seed=1, dtype="auto"):
    config = EncoderConfig(model=str(directory), device="cpu", dtype=dtype)
    clip = encode_clip(load_encoder(config), 9, 96, 160, seed=seed)
    return clip.cached(some_tokens(clip, seed=3))


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    """Another checkpoint of the same sizes and the same tokenizer."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def video(tiny_checkpoint):
    return encode(tiny_checkpoint)


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def refusal(error, call):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_weights(directory, change):
    """Rewrite a checkpoint's weights; ``change`` takes name and tensor."""
    path = directory / "model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def change_config(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def never_read(*args):
    raise AssertionError("vision weights are read")


def test_a_model_of_another_checkpoint_is_refused(other_checkpoint, tokenizer, video):
    message = refusal(ModelError, lambda: Session(load(other_checkpoint), tokenizer, video))
    assert f"{other_checkpoint}: its vision weights are not those that made this cache" in message


def test_features_of_two_encoders_do_not_share_a_prompt(
    other_checkpoint, tiny_checkpoint, tokenizer, video
):
    other = encode(other_checkpoint)
    for call in [
        lambda: build_prefill([video, other], tokenizer, QUESTION),
        lambda: Session(load(tiny_checkpoint), tokenizer, [video, other]),
    ]:
        message = refusal(PrefillError, call)
        assert "come from different encoders (weights digest" in message


def test_two_caches_of_one_encoder_share_a_prompt(tiny_checkpoint, tiny_model, tokenizer, video):
    other = encode(tiny_checkpoint, seed=2)
    manifest = dataclasses.replace(other.manifest, about={"model": "elsewhere"})
    other = dataclasses.replace(other, manifest=manifest)
    assert Session(tiny_model, tokenizer, [video, other]).ask(QUESTION, max_new_tokens=2)


@pytest.mark.parametrize("layers", [[0], [0, 1], [0, 1, 2, 3], []], ids=str)
def test_a_model_with_fewer_or_more_deepstack_layers_is_refused(copied, tokenizer, video, layers):
    change_config(copied, lambda c: c["vision_config"].update(deepstack_visual_indexes=layers))
    message = refusal(ModelError, lambda: Session(load(copied), tokenizer, video))
    assert (
        f"DeepStack layers of this model is {len(layers)}, of the one that made the cache 3"
        in message
    )


def test_deepstack_features_of_other_layers_are_refused(copied, tokenizer, video):
    change_config(copied, lambda c: c["vision_config"].update(deepstack_visual_indexes=[0, 1, 3]))
    message = refusal(ModelError, lambda: Session(load(copied), tokenizer, video))
    assert "not those that made this cache" in message


def test_a_model_of_another_width_is_refused_before_any_forward(tokenizer, video, monkeypatch):
    model = load(REPOSITORY / "examples" / "toyworld" / "model")
    monkeypatch.setattr(origin, "_read", never_read)
    message = refusal(ModelError, lambda: Session(model, tokenizer, video))
    assert "the width of this model is 160, of the one that made the cache 64" in message


def test_a_mixture_of_experts_is_another_kind_of_model(tiny_moe_checkpoint, tokenizer, video):
    message = refusal(ModelError, lambda: Session(load(tiny_moe_checkpoint), tokenizer, video))
    assert (
        "the type of this model is qwen3_vl_moe, of the one that made the cache qwen3_vl" in message
    )


def test_a_tokenizer_of_another_checkpoint_is_refused(tiny_model, video):
    other = AutoTokenizer.from_pretrained(REPOSITORY / "examples" / "toyworld" / "model")
    for call in [
        lambda: video.prefill(other, QUESTION),
        lambda: build_prefill([video], other, QUESTION),
        lambda: Session(tiny_model, other, video).ask(QUESTION),
    ]:
        refusal((ModelError, PrefillError), call)


def test_a_tokenizer_that_writes_times_otherwise_is_refused_with_the_markers_alike(
    tokenizer, tiny_model, video
):
    other = copy.deepcopy(tokenizer)
    video.prefill(other, QUESTION)
    other.add_tokens(["seconds"])
    for call in [
        lambda: video.prefill(other, QUESTION),
        lambda: Session(tiny_model, other, video),
    ]:
        assert "writes timestamps or video markers with other ids" in refusal(ModelError, call)


def with_swapped_ids(directory, one, other):
    """A tokenizer of the files in ``directory``, rewritten with the ids of two tokens swapped."""
    path = directory / "tokenizer.json"
    body = json.loads(path.read_text())
    ids = body["model"]["vocab"]
    ids[one], ids[other] = ids[other], ids[one]
    path.write_text(json.dumps(body))
    return AutoTokenizer.from_pretrained(directory)


def test_a_tokenizer_that_differs_in_other_ids_alone_is_refused_by_a_session(
    copied, tiny_model, video
):
    other = with_swapped_ids(copied, "!", '"')
    message = refusal(ModelError, lambda: Session(tiny_model, other, video))
    assert "has id 1 for '!'" in message or "has id 0 for '\"'" in message
    assert "give the tokenizer of the same checkpoint" in message


def test_a_tokenizer_with_further_tokens_or_saved_again_is_accepted(
    tiny_checkpoint, tiny_model, tmp_path, video
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.save_pretrained(tmp_path / "again")
    Session(tiny_model, AutoTokenizer.from_pretrained(tmp_path / "again"), video)
    Session(tiny_model, tokenizer, video)
    tokenizer.add_tokens(["<more>"])
    Session(tiny_model, tokenizer, video)


def test_a_model_whose_folder_has_no_tokenizer_takes_one_that_writes_the_cache(
    copied, tokenizer, video
):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    Session(load(copied), tokenizer, video)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_another_floating_type_of_the_same_checkpoint_is_accepted(
    tiny_checkpoint, tokenizer, video, dtype
):
    for model in (load(tiny_checkpoint, dtype=dtype), load(tiny_checkpoint).to(dtype)):
        assert isinstance(Session(model, tokenizer, video).ask(QUESTION, max_new_tokens=2), str)


def test_a_cache_in_another_floating_type_than_its_checkpoint_takes_the_model(
    tiny_checkpoint, tiny_model, tokenizer
):
    video = encode(tiny_checkpoint, dtype="bfloat16")
    assert video.manifest.encoder.dtype == "BF16"
    Session(tiny_model, tokenizer, video)
    Session(load(tiny_checkpoint, dtype=torch.bfloat16), tokenizer, video)


def test_a_tuned_language_model_with_the_same_vision_weights_is_accepted(copied, tokenizer, video):
    change_weights(copied, lambda name, x: x if "visual" in name else x * 1.01)
    Session(load(copied), tokenizer, video)


def test_a_tuned_vision_encoder_is_refused(copied, tokenizer, video):
    change_weights(copied, lambda name, x: x * 1.01 if "visual.blocks.0" in name else x)
    message = refusal(ModelError, lambda: Session(load(copied), tokenizer, video))
    assert "not those that made this cache" in message


def test_a_quantised_language_part_is_accepted(copied, tokenizer, video):
    """Its files hold codes and scales where the language model's weights were."""
    model = load(copied)
    for layer in model.model.language_model.layers:
        codes = layer.mlp.up_proj.weight.to(torch.int8)
        layer.mlp.up_proj.weight = torch.nn.Parameter(codes, requires_grad=False)
    change_weights(
        copied, lambda name, x: x.to(torch.float8_e4m3fn) if "language_model.layers" in name else x
    )
    quantised = {"quant_method": "fp8", "modules_to_not_convert": ["visual"]}
    change_config(copied, lambda config: config.update(quantization_config=quantised))
    Session(model, tokenizer, video)


def test_a_model_that_was_tuned_in_memory_is_accepted(tiny_checkpoint, tokenizer, video):
    model = load(tiny_checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    Session(model, tokenizer, video)


def test_a_model_without_its_vision_tower_is_accepted(tiny_checkpoint, tokenizer, video):
    model = load(tiny_checkpoint)
    del model.model.visual
    assert isinstance(Session(model, tokenizer, video).ask(QUESTION, max_new_tokens=2), str)


@pytest.fixture(params=["a bare configuration", "the checkpoint's configuration", "a gone folder"])
def unknown_model(request, tiny_checkpoint, tmp_path):
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    if request.param == "a gone folder":
        directory = shutil.copytree(tiny_checkpoint, tmp_path / "gone")
        model = load(directory)
        shutil.rmtree(directory)
        return model
    if request.param == "a bare configuration":
        config = type(config)(**{k: v for k, v in config.to_dict().items() if k[0] != "_"})
        assert not config._name_or_path
    return AutoModelForImageTextToText.from_config(config).eval()


def test_a_model_of_unknown_origin_is_refused_unless_its_checkpoint_is_named(
    unknown_model, tiny_checkpoint, other_checkpoint, tokenizer, video
):
    message = refusal(ModelError, lambda: Session(unknown_model, tokenizer, video))
    assert "checkpoint='folder or hub id'" in message
    for name in (str(tiny_checkpoint), tiny_checkpoint):
        session = Session(unknown_model, tokenizer, video, checkpoint=name)
        assert isinstance(session.ask(QUESTION, max_new_tokens=2), str)
    message = refusal(
        ModelError, lambda: Session(unknown_model, tokenizer, video, checkpoint=other_checkpoint)
    )
    assert "not those that made this cache" in message
    refusal(ModelError, lambda: Session(unknown_model, tokenizer, video))


def test_a_named_checkpoint_that_is_not_there_or_is_of_another_kind_is_refused(
    tiny_model, tiny_moe_checkpoint, tokenizer, video, tmp_path
):
    for name, message in [
        (tmp_path / "nothing", "neither an existing directory nor a hub id"),
        (tmp_path, "no config.json"),
        (tiny_moe_checkpoint, "config.json says model_type 'qwen3_vl_moe'"),
    ]:
        assert message in refusal(
            ModelError,
            lambda name=name: Session(tiny_model, tokenizer, video, checkpoint=name),
        )


def test_a_checkpoint_without_its_vision_weights_is_refused(copied, tokenizer, video):
    model = load(copied)
    path = copied / "model.safetensors"
    tensors = {name: x for name, x in load_file(path).items() if "visual" not in name}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    message = refusal(ModelError, lambda: Session(model, tokenizer, video))
    assert "weights of the vision encoder are missing" in message
    assert "or name the checkpoint it is of: Session(..., checkpoint=" in message


def test_the_weights_are_read_once_for_a_model_and_once_for_the_same_files(
    copied, tokenizer, video, monkeypatch
):
    model = load(copied)
    reads = []
    read_tower = origin.load_tower
    monkeypatch.setattr(
        origin, "load_tower", lambda *given: reads.append(given) or read_tower(*given)
    )
    for _ in range(3):
        Session(model, tokenizer, video)
    Session(load(copied), tokenizer, video)
    assert len(reads) == 1
    change_weights(copied, lambda name, x: x * 2 if "visual" in name else x)
    Session(model, tokenizer, video)
    assert len(reads) == 1, "what the model was loaded from was read before"
    message = refusal(ModelError, lambda: Session(load(copied), tokenizer, video))
    assert "not those that made this cache" in message
    assert len(reads) == 2


def test_a_known_model_stays_known_without_its_folder_and_not_under_another_name(
    copied, tokenizer, video
):
    model = load(copied)
    Session(model, tokenizer, video)
    shutil.rmtree(copied)
    Session(model, tokenizer, video)
    model.config._name_or_path = ""
    message = refusal(ModelError, lambda: Session(model, tokenizer, video))
    assert "the model does not say where it was loaded from" in message


def test_what_is_known_of_a_model_does_not_keep_it_alive(copied, tokenizer, video):
    model = load(copied)
    Session(model, tokenizer, video)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_of_imported_features_the_kind_of_model_alone_is_compared(
    unknown_model, tiny_moe_checkpoint, tokenizer, video
):
    manifest = dataclasses.replace(video.manifest, decode=DecoderIdentity(IMPORTED, {}))
    imported = dataclasses.replace(video, manifest=manifest)
    Session(unknown_model, tokenizer, imported)
    refusal(ModelError, lambda: Session(load(tiny_moe_checkpoint), tokenizer, imported))


@pytest.mark.slow
def test_a_model_from_the_hubs_cache_is_known_offline(tiny_checkpoint, tmp_path, video):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / revision)
    torch.save(video, tmp_path / "video.pt")
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForImageTextToText, AutoTokenizer\n"
        "from pipeline.session import Session\n"
        "video = torch.load(sys.argv[1], weights_only=False)\n"
        "model = AutoModelForImageTextToText.from_pretrained('someone/tiny')\n"
        "tokenizer = AutoTokenizer.from_pretrained('someone/tiny')\n"
        "assert model.config._name_or_path == 'someone/tiny'\n"
        "Session(model, tokenizer, video)\n"
        "model.config._name_or_path = ''\n"
        "Session(model, tokenizer, video, checkpoint='someone/tiny')\n"
        "model.config._name_or_path = 'someone/gone'\n"
        "try:\n"
        "    Session(type(model)(model.config), tokenizer, video)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "video.pt")],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "loaded from 'someone/gone', which is not there now" in result.stdout
