"""Each fusion method from a video file to the logits of a question, against keeping everything."""

import dataclasses

import pytest
import torch

from jobs.build import build
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.fusion import METHODS, plan_fusion
from pipeline.prefill import build_prefill
from schemas.config_file import parse_config
from schemas.fusion import FusionConfig
from tests.synthetic import logits_with_hidden

pytestmark = pytest.mark.slow

QUESTION = "What falls off the table?"
ASKED = [
    *((name, {"budget": 0.45}) for name in METHODS if METHODS[name].budgeted),
    *((name, {"threshold": 0.97}) for name in METHODS if METHODS[name].uses_threshold),
    *((name, {}) for name in METHODS),
]

# The masked and the shortened sequence are summed in another order: 1e-5 of a logit in float32.
TOLERANCE = 3e-5


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "scene.mp4"
    write_scene_clip(path, seed=4, seconds=5.0, width=160, height=96, fps=10)
    return path


@pytest.fixture(scope="module")
def cached(clip, tiny_checkpoint, tmp_path_factory):
    """A function (method, settings) -> the clip as a build caches it, loaded."""

    def run(method, settings, *, load_budget=None):
        root = tmp_path_factory.mktemp(method)
        config = parse_config(
            {
                "encoder": {"model": str(tiny_checkpoint), "device": "cpu"},
                "sampling": {"fps": 4.0},
                "fusion": {"method": method, **settings},
            }
        )
        assert build([str(clip)], root, config, progress_style="none").exit_code == 0
        return open_cache(root).load("scene.mp4", budget=load_budget)

    return run


@pytest.fixture(scope="module")
def whole(cached):
    return cached("none", {})


def grid_index(video):
    t, y, x = video.coordinates.long().T
    return (t * video.grid.height + y) * video.grid.width + x


def mean_rows(layer, plan):
    """The row of each kept token in plain loops."""
    rows = []
    for index in plan.keep_index.tolist():
        members = [g for g in range(len(layer)) if plan.match_index[g] == index]
        if plan.weight is None:
            rows.append(layer[index].double())
        else:
            rows.append(sum(layer[g].double() * float(plan.weight[g]) for g in members))
    return torch.stack(rows).float()


def masked_full_logits(model, tokenizer, whole, keep_index):
    """The full prompt, its dropped columns hidden from everybody by a 4-D mask."""
    full = build_prefill([whole], tokenizer, QUESTION)
    pads = (full.input_ids[0] == tokenizer.convert_tokens_to_ids("<|video_pad|>")).nonzero()
    is_hidden = torch.zeros(full.input_ids.shape[1], dtype=torch.bool)
    is_hidden[pads.flatten()] = True
    is_hidden[pads.flatten()[keep_index]] = False
    return logits_with_hidden(model, full, is_hidden)


@pytest.mark.parametrize(("method", "settings"), ASKED, ids=str)
@torch.inference_mode()
def test_a_built_video_answers_as_the_full_prompt_with_all_but_its_rows_hidden(
    cached, whole, encoder, tiny_model, method, settings
):
    video = cached(method, settings)
    plan = plan_fusion(whole.embeddings, whole.grid, FusionConfig(method=method, **settings))
    assert grid_index(video).tolist() == plan.keep_index.tolist()
    assert video.match.tolist() == plan.match_index.tolist()
    if "budget" in settings:
        assert video.num_tokens == int(0.45 * whole.num_tokens)
    if method != "none":
        assert video.num_tokens < whole.num_tokens

    at = plan.keep_index
    assert torch.equal(
        video.position_ids[:, video.visual_index], whole.position_ids[:, whole.visual_index[at]]
    )
    assert video.next_position == whole.next_position

    features = whole.features.clone()
    layers = whole.features.view(whole.num_tokens, 1 + whole.num_deepstack, -1)
    for number in range(layers.shape[1]):
        rows = mean_rows(layers[:, number], plan)
        features.view_as(layers)[at, number] = rows
    torch.testing.assert_close(video.features, features[at], atol=1e-6, rtol=1e-6)

    replaced = dataclasses.replace(whole, features=features)
    expected = masked_full_logits(tiny_model, encoder.tokenizer, replaced, at)
    found = tiny_model(**build_prefill([video], encoder.tokenizer, QUESTION)).logits[0]
    assert expected.std() > 0.3, "logits must vary, or the comparison proves nothing"
    assert (found - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].nested])
def test_a_smaller_budget_that_is_loaded_is_that_which_is_built(cached, method):
    built = cached(method, {"budget": 0.4})
    loaded = cached(method, {"budget": 0.8}, load_budget=0.4)
    assert torch.equal(grid_index(loaded), grid_index(built))
    assert torch.equal(loaded.features, built.features)
    assert torch.equal(loaded.position_ids, built.position_ids)
