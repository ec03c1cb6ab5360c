import hashlib

import numpy as np
import pytest
import torch

from pipeline.preprocess import normalize, patchify, resize_frames, target_size
from schemas.errors import PreprocessError
from schemas.grid import PatchGeometry
from schemas.manifest import ResolvedPreprocess
from tests.synthetic import pattern_frames

PATCHES = PatchGeometry(patch_size=16, temporal_patch_size=2, spatial_merge_size=2)


def settings(cap: bool = False, max_pixels: int = 32 * 32 * 768, min_pixels: int = 4096):
    return ResolvedPreprocess(min_pixels, max_pixels, cap, 768, (0.5,) * 3, (0.5,) * 3)


def pixel_values(frames: np.ndarray, given: ResolvedPreprocess) -> tuple[torch.Tensor, list[int]]:
    size = target_size(len(frames), *frames.shape[1:3], patches=PATCHES, settings=given)
    rows = patchify(torch.from_numpy(resize_frames(frames, size)), PATCHES)
    grid = [-(-len(frames) // 2), size[0] // 16, size[1] // 16]
    return normalize(rows, given), grid


# Made with the model's own Qwen3VLVideoProcessor (transformers 5.23.0, torchvision 0.28.0) as
# docs/decisions/preprocessing.md says: (frames, height, width, capped) -> grid, sha256 of pixels.
GOLDEN = {
    (8, 96, 128, False): (
        [4, 6, 8],
        "50ddcca0322b18e245719e9eb4adebb295e85bdc1ffe8dbbeb3138d4d0791376",
    ),
    (7, 90, 130, False): (
        [4, 6, 8],
        "b6b4e633cfbe3c5cfc74c7234f8349632b6a6db9a3cb0054cdf14dfdc3aeaa28",
    ),
    (5, 200, 333, False): (
        [3, 12, 20],
        "71f60171bf9238b6bcc56f1f2f1c94cb67ec40eb89367fd0fe47544caf61056a",
    ),
    (4, 20, 50, False): (
        [2, 2, 4],
        "fdf14fc1dbbe12c308ce124b93864751a85621aca833eb3d8d2431b324b63f0d",
    ),
    (6, 480, 270, False): (
        [3, 30, 16],
        "ab46427bafcf9f340df81f74b9b1ffb3dce49b921ae72302085260085cf01b87",
    ),
    (3, 33, 401, False): (
        [2, 2, 26],
        "c4f81d430933d7791a5596173af60ec265cb8e271b13a55fc58eb105ab0a6962",
    ),
    (40, 240, 320, False): (
        [20, 6, 10],
        "f19422ad88d97e1002fef3df158e07774f83103286694ea70f982db96f310af2",
    ),
    (40, 240, 320, True): (
        [20, 6, 10],
        "f19422ad88d97e1002fef3df158e07774f83103286694ea70f982db96f310af2",
    ),
    (4, 540, 960, False): (
        [2, 20, 36],
        "076a0a74a9dc848e1cbafe35ac68f13260f07ba8413d6d8c72c12cce760b0e80",
    ),
    (4, 540, 960, True): (
        [2, 20, 36],
        "076a0a74a9dc848e1cbafe35ac68f13260f07ba8413d6d8c72c12cce760b0e80",
    ),
}

SHAPES = [
    (8, 96, 128, False),
    (7, 90, 130, False),
    (5, 200, 333, False),
    (4, 20, 50, False),
    (6, 480, 270, False),
    (3, 33, 401, False),
    (40, 240, 320, False),
    (40, 240, 320, True),
    (4, 540, 960, False),
    (4, 540, 960, True),
]


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixel_values_have_the_digest_of_the_models_own_processor(shape):
    num_frames, height, width, cap = shape
    values, grid = pixel_values(pattern_frames(num_frames, height, width), settings(cap))
    assert (grid, digest(values)) == GOLDEN[shape]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixel_values_equal_the_models_own_processor_bit_for_bit(shape):
    processor = _own_processor()
    num_frames, height, width, cap = shape
    frames = pattern_frames(num_frames, height, width)
    theirs = processor(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        cap_pixels_per_frame=cap,
        return_tensors="pt",
    )
    mine, grid = pixel_values(frames, settings(cap))
    assert theirs["video_grid_thw"].tolist() == [grid]
    assert torch.equal(theirs["pixel_values_videos"], mine)


def _own_processor():
    try:
        import torchvision  # noqa: F401
        from transformers import Qwen3VLVideoProcessor
    except Exception as error:  # a half-installed torchvision raises RuntimeError
        pytest.skip(f"torchvision cannot be imported here ({error}); the digests stand for it")
    size = {"shortest_edge": 4096, "longest_edge": 32 * 32 * 768}
    return Qwen3VLVideoProcessor(size=size, patch_size=16, temporal_patch_size=2, merge_size=2)


def test_batches_of_whole_temporal_patches_give_the_same_rows_as_the_whole_video():
    frames = pattern_frames(7, 90, 130)
    whole, _ = pixel_values(frames, settings())
    size = target_size(7, 90, 130, patches=PATCHES, settings=settings())
    parts = [
        normalize(
            patchify(torch.from_numpy(resize_frames(frames[i : i + 2], size)), PATCHES), settings()
        )
        for i in range(0, 7, 2)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_the_pixel_budget_is_shared_by_all_frames_so_more_frames_are_smaller():
    few = target_size(4, 540, 960, patches=PATCHES, settings=settings())
    many = target_size(64, 540, 960, patches=PATCHES, settings=settings())
    assert many[0] * many[1] < few[0] * few[1]
    assert 64 * many[0] * many[1] <= settings().max_pixels


def test_the_cap_per_frame_changes_the_size_where_it_binds():
    free = target_size(4, 1080, 1920, patches=PATCHES, settings=settings(max_pixels=25165824))
    capped = target_size(4, 1080, 1920, patches=PATCHES, settings=settings(True, 25165824))
    assert (free, capped) == ((1088, 1920), (640, 1152))


def test_a_single_frame_is_refused_as_the_models_processor_refuses_it():
    with pytest.raises(PreprocessError, match="needs at least 2"):
        target_size(1, 96, 96, patches=PATCHES, settings=settings())


def test_an_extreme_aspect_ratio_is_refused():
    with pytest.raises(PreprocessError, match="aspect ratio"):
        target_size(4, 32, 32 * 201, patches=PATCHES, settings=settings())


def test_frames_of_the_target_size_come_back_as_a_copy():
    frames = pattern_frames(2, 64, 64)
    same = resize_frames(frames, (64, 64))
    assert np.array_equal(same, frames)
    assert not np.shares_memory(same, frames)
