import json

import pytest
import torch

from pipeline.cache import open_cache
from pipeline.sttm_prompt import NEWLINES, prompt_rule, video_stretch
from schemas.errors import ConfigError, ModelError
from schemas.grid import TokenGrid
from tests.sttm.extraction import WIDTH, run


def slow_tokens(grid):
    """Qwen2-VL's numbering of one video, one token at a time, and what comes after it."""
    tokens = [
        (t, y, x) for t in range(grid.frames) for y in range(grid.height) for x in range(grid.width)
    ]
    return tokens, 1 + max(max(token) for token in tokens)


def slow_newline_positions(grid, newline):
    """LLaVA's numbering: one column after another, the newlines among them."""
    positions, column = [], 0
    for _ in range(grid.frames):
        for _ in range(grid.height):
            for _ in range(grid.width):
                positions.append(column)
                column += 1
            column += newline == "grid"
        column += newline == "frame"
    return positions, column + (newline == "one_token")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (7, 2, 3), (4, 4, 4), (3, 5, 2)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_positions_are_those_of_qwen2_vl_for_the_whole_video(shape, share):
    grid = TokenGrid(*shape)
    draw = torch.rand(grid.num_tokens, generator=torch.Generator().manual_seed(1))
    keep = torch.nonzero(draw < share).flatten()
    stretch = video_stretch(grid, keep, prompt_rule("qwen2_vl"))
    tokens, following = slow_tokens(grid)
    assert stretch.input_ids.tolist() == [151656] * len(keep)
    assert stretch.position_ids.T.tolist() == [list(tokens[index]) for index in keep.tolist()]
    assert stretch.visual_index.tolist() == list(range(len(keep)))
    assert stretch.visual_grid_index.tolist() == keep.tolist()
    assert stretch.next_position == following


@pytest.mark.parametrize("newline", NEWLINES)
def test_llava_tokens_are_numbered_one_by_one_with_room_for_newlines(newline):
    grid = TokenGrid(3, 4, 2)
    keep = torch.tensor([0, 1, 2, 7, 8, 13, 23])
    stretch = video_stretch(grid, keep, prompt_rule("llava_onevision", newline=newline))
    positions, following = slow_newline_positions(grid, newline)
    expected = [positions[index] for index in keep.tolist()]
    assert stretch.position_ids.tolist() == [expected] * 3
    assert stretch.next_position == following
    assert stretch.input_ids.tolist() == [151647] * len(keep)


def test_the_stored_stretch_is_that_of_the_kept_tokens(folder, tmp_path):
    run(folder, tmp_path / "cache", fusion="ttf")
    video = open_cache(tmp_path / "cache").load("b", budget=5)
    _, following = slow_tokens(video.grid)
    assert video.input_ids.tolist() == [151656] * 5
    assert torch.equal(video.position_ids.T, video.coordinates)
    assert video.next_position == following


def write_config(directory, **changed):
    directory.mkdir()
    config = {"model_type": "qwen2_vl", "video_token_id": 13, **changed}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_placeholders_id_comes_from_the_models_config_when_it_is_given(folder, tmp_path):
    write_config(tmp_path / "model", hidden_size=WIDTH)
    assert run(folder, tmp_path / "cache", "--model", str(tmp_path / "model")).exit_code == 0
    assert set(open_cache(tmp_path / "cache").load("a").input_ids.tolist()) == {13}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "qwen3_vl"}, "of type 'qwen3_vl', expected 'qwen2_vl'"),
        ({"video_token_id": None}, "expected a token id"),
        ({"video_token_id": -1}, "expected a token id"),
        ({"video_token_id": True}, "expected a token id"),
    ],
)
def test_a_model_that_cannot_have_made_the_features_is_refused(tmp_path, changed, message):
    with pytest.raises(ModelError, match=message):
        prompt_rule("qwen2_vl", directory=write_config(tmp_path / "model", **changed))


def test_a_model_of_another_width_is_refused_before_anything_is_written(folder, tmp_path):
    write_config(tmp_path / "model", hidden_size=3584)
    result = run(folder, tmp_path / "cache", "--model", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert "16 wide" in result.stderr
    assert not (tmp_path / "cache").exists()


def test_llava_without_a_place_for_its_newlines_is_refused():
    with pytest.raises(ConfigError, match="mm_newline_position"):
        prompt_rule("llava_onevision")


def test_newlines_are_refused_where_there_are_none():
    with pytest.raises(ConfigError, match="leave newline out"):
        prompt_rule("qwen2_vl", newline="grid")


def test_a_family_whose_prompt_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="qwen2_5_vl"):
        prompt_rule("qwen2_5_vl")
