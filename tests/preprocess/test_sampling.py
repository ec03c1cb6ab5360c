import pytest

from pipeline.sampling import sample_frame_indices
from schemas.config import SamplingConfig

# From Qwen3VLVideoProcessor.sample_frames of transformers 5.23.0:
# (frames, fps, sampled fps) -> count, first six, last three, sum.
GOLDEN = {
    (90, 30.0, 2.0): (6, [0, 18, 36, 53, 71, 89], [53, 71, 89], 267),
    (105, 30.0, 2.0): (7, [0, 17, 35, 52, 69, 87], [69, 87, 104], 364),
    (57, 19.0, 2.0): (6, [0, 11, 22, 34, 45, 56], [34, 45, 56], 168),
    (3, 25.0, 2.0): (3, [0, 1, 2], [0, 1, 2], 3),
    (36000, 10.0, 2.0): (768, [0, 47, 94, 141, 188, 235], [35905, 35952, 35999], 13823616),
    (390, 29.97002997002997, 2.0): (26, [0, 16, 31, 47, 62, 78], [358, 373, 389], 5057),
    (132, 25.0, 1.0): (5, [0, 33, 66, 98, 131], [66, 98, 131], 328),
}


@pytest.mark.parametrize("given", GOLDEN, ids=str)
def test_indices_are_those_of_the_models_own_processor(given):
    num_frames, fps, sampled_fps = given
    found = sample_frame_indices(num_frames, fps, SamplingConfig(fps=sampled_fps)).tolist()
    assert (len(found), found[:6], found[-3:], sum(found)) == GOLDEN[given]


def test_a_fixed_number_of_frames_overrides_the_rate():
    assert sample_frame_indices(100, 25.0, SamplingConfig(num_frames=3)).tolist() == [0, 50, 99]


def test_a_short_video_gives_each_frame_once():
    assert sample_frame_indices(2, 25.0, SamplingConfig()).tolist() == [0, 1]
