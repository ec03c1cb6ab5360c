import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.positions import MarkerIds, coordinates, frame_timestamps, prompt_stretch
from pipeline.prefill import build_prefill
from schemas.errors import GridMismatchError
from schemas.grid import TokenGrid
from tests.synthetic import encode_clip, model_inputs, some_tokens

MARKERS = MarkerIds(vision_start=1, vision_end=2, video_pad=3)


def loop_stretch(grid, keep, timestamp_ids, first_frame=None):
    """The rule written as plain loops: (ids, positions) of every column, and the next position."""
    frames, position = [], 0
    for t in range(grid.frames):
        columns = []
        for token in [*timestamp_ids[t], MARKERS.vision_start]:
            columns.append((token, (position,) * 3))
            position += 1
        columns += [
            (MARKERS.video_pad, (position, position + y, position + x))
            for y in range(grid.height)
            for x in range(grid.width)
            if (t * grid.height + y) * grid.width + x in keep
        ]
        position += max(grid.height, grid.width)
        columns.append((MARKERS.vision_end, (position,) * 3))
        position += 1
        frames.append(columns)
    if first_frame is not None:
        frames = [frames[first_frame], *frames[:first_frame], *frames[first_frame + 1 :]]
    return [column for columns in frames for column in columns], position


@given(
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_stretch_equals_the_rule_written_as_loops(sides, data):
    grid = TokenGrid(*sides)
    keep = sorted(data.draw(st.sets(st.integers(0, grid.num_tokens - 1))))
    times = [
        data.draw(st.lists(st.integers(10, 99), min_size=1, max_size=4)) for _ in range(sides[0])
    ]
    first = data.draw(st.none() | st.integers(0, grid.frames - 1))
    stretch = prompt_stretch(
        grid, torch.tensor(keep, dtype=torch.int64), times, MARKERS, first_frame=first
    )
    columns, next_position = loop_stretch(grid, set(keep), times, first)
    assert stretch.input_ids.tolist() == [token for token, _ in columns]
    assert stretch.position_ids.T.tolist() == [list(spot) for _, spot in columns]
    assert stretch.next_position == next_position
    assert sorted(stretch.visual_grid_index.tolist()) == keep
    assert stretch.input_ids[stretch.visual_index].tolist() == [MARKERS.video_pad] * len(keep)


def test_columns_of_finds_tokens_in_any_order():
    grid = TokenGrid(3, 2, 2)
    keep = torch.tensor([0, 3, 5, 8, 11])
    stretch = prompt_stretch(grid, keep, [[9]] * 3, MARKERS, first_frame=2)
    asked = keep[torch.tensor([4, 0, 2, 1, 3])]
    columns = stretch.columns_of(asked)
    by_column = dict(
        zip(stretch.visual_index.tolist(), stretch.visual_grid_index.tolist(), strict=True)
    )
    assert [by_column[column] for column in columns.tolist()] == asked.tolist()


def test_anchor_first_moves_a_block_and_changes_no_position():
    grid = TokenGrid(3, 2, 2)
    keep = torch.arange(12)
    plain = prompt_stretch(grid, keep, [[7], [8], [9]], MARKERS)
    moved = prompt_stretch(grid, keep, [[7], [8], [9]], MARKERS, first_frame=1)
    block = len(plain.input_ids) // 3
    order = [*range(block, 2 * block), *range(block), *range(2 * block, 3 * block)]
    assert torch.equal(moved.input_ids, plain.input_ids[order])
    assert torch.equal(moved.position_ids, plain.position_ids[:, order])
    assert moved.next_position == plain.next_position


def test_positions_equal_get_rope_index_for_the_whole_video(encoder, tiny_model):
    clip = encode_clip(encoder, 9, 96, 160, seed=1)
    _assert_positions(tiny_model, [clip], [clip.cached_whole()])


def test_positions_of_survivors_equal_get_rope_index_and_index_select(encoder, tiny_model):
    clip = encode_clip(encoder, 9, 96, 160, seed=1)
    keep = some_tokens(clip, seed=3)
    assert not ((keep >= 15) & (keep < 30)).any(), "frame 1 must have no survivor"
    _assert_positions(tiny_model, [clip], [clip.cached(keep)])


def test_positions_of_several_videos_in_one_prompt_equal_get_rope_index(encoder, tiny_model):
    clips = [
        encode_clip(encoder, 9, 96, 160, seed=1),
        encode_clip(encoder, 4, 160, 64, seed=2),
        encode_clip(encoder, 6, 64, 64, seed=3),
    ]
    cut = [clip.cached(some_tokens(clip, seed=5)) for clip in clips]
    _assert_positions(tiny_model, clips, cut)


@pytest.mark.parametrize(("num_frames", "beyond"), [(40, 256), (300, 2048)])
def test_positions_stay_exact_beyond_what_bfloat16_can_count(
    encoder, tiny_model, num_frames, beyond
):
    clip = encode_clip(encoder, num_frames, 64, 64, seed=4)
    assert clip.cached_whole().next_position > beyond
    _assert_positions(tiny_model, [clip], [clip.cached(some_tokens(clip, seed=6))])


def _assert_positions(model, clips, videos):
    """The survivors' positions are those of the uncompressed prompt, selected."""
    tokenizer = clips[0].encoder.tokenizer
    whole = [clip.cached_whole() for clip in clips]
    full = build_prefill(whole, tokenizer, "What moves?")
    given = model_inputs(clips, full.input_ids)
    expected, delta = model.model.get_rope_index(
        full.input_ids, given["mm_token_type_ids"], video_grid_thw=given["video_grid_thw"]
    )
    assert torch.equal(full.position_ids[1:], expected)
    stays = torch.ones(full.input_ids.shape[1], dtype=torch.bool)
    pads = (
        torch.nonzero(given["mm_token_type_ids"][0]).flatten().split([v.num_tokens for v in whole])
    )
    for columns, video in zip(pads, videos, strict=True):
        dropped = torch.ones(len(columns), dtype=torch.bool)
        t, y, x = video.coordinates.long().T
        dropped[(t * video.grid.height + y) * video.grid.width + x] = False
        stays[columns[dropped]] = False
    cut = build_prefill(videos, tokenizer, "What moves?")
    assert torch.equal(cut.input_ids, full.input_ids[:, stays])
    assert torch.equal(cut.position_ids[1:], expected[:, :, stays])
    assert int(cut.position_ids[1:].max()) + 1 == full.input_ids.shape[1] + int(delta)


def test_coordinates_invert_the_grid_index():
    grid = TokenGrid(4, 3, 5)
    spots = coordinates(torch.arange(grid.num_tokens), grid)
    assert spots.dtype == torch.int32
    t, y, x = spots.long().T
    assert torch.equal((t * 3 + y) * 5 + x, torch.arange(60))


def test_timestamps_are_the_mean_of_a_temporal_patch_and_an_odd_last_frame_stands_alone():
    assert frame_timestamps(np.array([0, 10, 20]), 10.0, 2) == [0.5, 2.0]


def test_another_number_of_timestamps_than_token_frames_is_refused():
    with pytest.raises(GridMismatchError, match="2 timestamps for 3"):
        prompt_stretch(TokenGrid(3, 1, 1), torch.arange(3), [[9]] * 2, MARKERS)


def test_a_token_off_the_grid_is_refused():
    with pytest.raises(GridMismatchError, match="beyond the grid"):
        prompt_stretch(TokenGrid(3, 1, 1), torch.tensor([0, 3]), [[9]] * 3, MARKERS)
