import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch

from pipeline.encoders import load_encoder
from pipeline.preprocess import normalize, patchify, resize_frames, target_size
from pipeline.processor import resolve_settings
from pipeline.sampling import sample_frame_indices
from schemas.config import (
    PROCESSOR_SAMPLING,
    EncoderConfig,
    PreprocessConfig,
    SamplingConfig,
)
from schemas.errors import ConfigError, ModelError
from schemas.grid import PatchGeometry
from tests.synthetic import pattern_frames

PATCHES = PatchGeometry(patch_size=16, temporal_patch_size=2, spatial_merge_size=2)
FILE = "video_preprocessor_config.json"
NAMED = {"video_processor_type": "Qwen3VLVideoProcessor"}
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
BYTE_MEAN, BYTE_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def write(folder, settings, name=FILE):
    (folder / name).write_text(json.dumps(settings))
    return folder


def resolved(folder, settings, **overrides):
    return resolve_settings(write(folder, NAMED | settings), patches=PATCHES, **overrides)


def refusal(folder, settings, **overrides):
    with pytest.raises((ModelError, ConfigError)) as caught:
        resolved(folder, settings, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / FILE) in message
    return message


# Made with AutoVideoProcessor of transformers 5.23.0 and torchvision 0.28.0 from a folder with
# these settings: 40 frames of 90x130 pixels at 4 fps -> number and sum of sampled indices, sha256
# of pixels.
GOLDEN = [
    ({}, (20, 390), "3142fb132fbb9e87fcdbaf95a101a2a09ceebbaffbedd906882ea7c09252ffdd"),
    (
        {"fps": 1, "max_frames": 6},
        (6, 117),
        "aca1dbe2199f0cc9293fd57a1fedba90dbe8a6e61721c53119edbb62fccf83aa",
    ),
    (
        {"min_frames": 9, "fps": 0.5},
        (9, 176),
        "6f70f68ff8a61d7500e06630719283471f2e6efca02a947e6edcf20885648014",
    ),
    (
        {"num_frames": 7, "fps": None},
        (7, 136),
        "431228a6fe7476d5c7827bdbfe070fc5d715ebe548a5b0300770c1c8269fc194",
    ),
    (
        {"size": {"shortest_edge": 50000, "longest_edge": 60000.0}},
        (20, 390),
        "db5b4f00dd97616595eb4dfc3c067ab05bb3785e8e76ed35ffb438092465c1cb",
    ),
    (
        {
            "size": {"shortest_edge": 4096, "longest_edge": 786432},
            "cap_pixels_per_frame": True,
            "max_video_tokens": 6,
        },
        (20, 390),
        "c851fd29a63cd88d3e8875d09448db23bacf594a73bd04e752a108e78e5ce713",
    ),
    (
        {"image_mean": 0.25, "image_std": [0.3]},
        (20, 390),
        "a1347282f714458564cfdb143c7eaa97f4e6c02aaa0b68825b51495eaf0ea113",
    ),
    (
        {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
        (20, 390),
        "efdf9a79c26ef16baa4156a9d126fe405f39616b3bdf1d96aa2563f3a48657cd",
    ),
    (
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": 1},
        (20, 390),
        "3142fb132fbb9e87fcdbaf95a101a2a09ceebbaffbedd906882ea7c09252ffdd",
    ),
    (
        {"rescale_factor": 0.0039},
        (20, 390),
        "85e01919eb215798faede8104104210776c9d931fed1070d0680bc6e1519e9df",
    ),
    (
        {"do_rescale": False, "image_mean": BYTE_MEAN, "image_std": BYTE_STD},
        (20, 390),
        "1bda2b048ad596a76ac6fecbcf3244e12961212d6078ce81f9099c0fa76af95a",
    ),
    (
        {"resample": "bicubic", "do_convert_rgb": False, "do_pad": True},
        (20, 390),
        "3142fb132fbb9e87fcdbaf95a101a2a09ceebbaffbedd906882ea7c09252ffdd",
    ),
]


def prepared(folder, settings):
    """Sampled indices and pixel values of the golden video."""
    own = resolved(folder, settings)
    indices = sample_frame_indices(40, 4.0, own.sampling)
    frames = pattern_frames(40, 90, 130)[indices]
    size = target_size(len(frames), 90, 130, patches=PATCHES, settings=own.preprocess)
    rows = patchify(torch.from_numpy(resize_frames(frames, size)), PATCHES)
    return indices, normalize(rows, own.preprocess)


@pytest.mark.parametrize(("settings", "sampled", "digest"), GOLDEN, ids=str)
def test_frames_and_pixels_are_those_of_the_processor_with_the_same_file(
    tmp_path, settings, sampled, digest
):
    indices, pixels = prepared(tmp_path, settings)
    assert (len(indices), indices.sum()) == sampled
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == digest


@pytest.mark.parametrize("settings", [case[0] for case in GOLDEN], ids=str)
def test_frames_and_pixels_equal_the_processor_that_is_installed(tmp_path, settings):
    try:
        import torchvision  # noqa: F401
        from transformers import AutoVideoProcessor
        from transformers.video_utils import VideoMetadata
    except Exception as error:  # a half-installed torchvision raises RuntimeError
        pytest.skip(f"torchvision cannot be imported here ({error}); the digests stand for it")
    indices, pixels = prepared(tmp_path, settings)
    theirs = AutoVideoProcessor.from_pretrained(str(tmp_path))(
        videos=[torch.from_numpy(pattern_frames(40, 90, 130)).permute(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=40, fps=4.0)],
        return_metadata=True,
        return_tensors="pt",
    )
    assert np.array_equal(theirs["video_metadata"][0].frames_indices, indices)
    assert torch.equal(theirs["pixel_values_videos"], pixels)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SamplingConfig(2.0, None, 4, 768)),
        ({"fps": 1, "max_frames": 6}, SamplingConfig(1.0, None, 4, 6)),
        ({"min_frames": 10}, SamplingConfig(2.0, None, 10, 768)),
        ({"num_frames": 8}, SamplingConfig(2.0, 8, 4, 768)),
        ({"num_frames": 8, "fps": 2}, SamplingConfig(2.0, 8, 4, 768)),
        ({"num_frames": 8, "fps": None}, SamplingConfig(2.0, 8, 4, 768)),
        ({"num_frames": None, "fps": 0.5}, SamplingConfig(0.5, None, 4, 768)),
    ],
    ids=str,
)
def test_the_checkpoints_sampling_is_the_default(tmp_path, settings, expected):
    assert resolved(tmp_path, settings).sampling == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SamplingConfig(fps=4.0), SamplingConfig(4.0, None, 3, 6)),
        (SamplingConfig(num_frames=5), SamplingConfig(2.0, 5, 4, 768)),
        (SamplingConfig(4.0, None, 1, 2), SamplingConfig(4.0, None, 1, 2)),
    ],
    ids=str,
)
def test_what_a_build_says_of_sampling_wins_and_a_rate_sets_a_number_aside(
    tmp_path, given, expected
):
    own = {"num_frames": 8, "min_frames": 3, "max_frames": 6}
    assert resolved(tmp_path, own, sampling=given).sampling == expected


@pytest.mark.parametrize("name", ["min_frames", "max_frames"])
def test_a_limit_beside_the_checkpoints_number_of_frames_is_refused_by_name(tmp_path, name):
    for value in (3, getattr(PROCESSOR_SAMPLING, name)):
        given = SamplingConfig(**{name: value})
        message = refusal(tmp_path, {"num_frames": 6, "fps": None}, sampling=given)
        assert message.startswith(f"sampling.{name} = {value} has no effect beside num_frames = 6 ")
        assert "say --fps, which sets num_frames aside" in message


@pytest.mark.parametrize("name", ["min_frames", "max_frames"])
def test_a_limit_beside_a_number_of_frames_of_the_build_is_refused_by_name(tmp_path, name):
    given = SamplingConfig(num_frames=5, **{name: 3})
    with pytest.raises(ConfigError, match=rf"sampling\.{name} = 3 has no effect beside num_frames"):
        resolved(tmp_path, {}, sampling=given)


def test_limits_count_for_nothing_where_the_number_of_frames_is_given(tmp_path):
    idle = [{}, {"max_frames": 20}, {"min_frames": 9}, {"max_frames": 2, "min_frames": 1}]
    found = [resolved(tmp_path, {"num_frames": 4, "fps": None} | own).sampling for own in idle]
    assert set(found) == {SamplingConfig(2.0, 4, 4, 768)}


def test_a_number_of_frames_sets_the_checkpoints_rate_aside(tmp_path):
    found = resolved(tmp_path, {"fps": 1}, sampling=SamplingConfig(num_frames=5))
    assert found.sampling == SamplingConfig(2.0, 5, 4, 768)


def test_what_a_build_says_of_pixels_wins(tmp_path):
    own = {"size": {"shortest_edge": 10, "longest_edge": 100}, "cap_pixels_per_frame": True}
    found = resolved(tmp_path, own).preprocess
    assert (found.min_pixels, found.max_pixels, found.cap_pixels_per_frame) == (10, 100, True)
    given = PreprocessConfig(min_pixels=20, cap_pixels_per_frame=False)
    found = resolved(tmp_path, own, preprocess=given).preprocess
    assert (found.min_pixels, found.max_pixels, found.cap_pixels_per_frame) == (20, 100, False)


REFUSED = [
    ("size", [None, 5, [64, 64], "big", {}, True]),
    ("size", [{"longest_edge": 9}, {"shortest_edge": 9}, {"height": 9, "width": 9}]),
    ("size", [{"shortest_edge": None, "longest_edge": 9}, {"shortest_edge": 0, "longest_edge": 9}]),
    ("size", [{"shortest_edge": -1, "longest_edge": 9}, {"shortest_edge": "1", "longest_edge": 9}]),
    ("size", [{"shortest_edge": 1.5, "longest_edge": 9}, {"min_pixels": 1, "max_pixels": 9}]),
    ("size", [{"shortest_edge": 1, "longest_edge": 9, "height": 9}]),
    ("size", [{"shortest_edge": 1, "longest_edge": 10**30}]),
    ("size", [{"shortest_edge": 1, "longest_edge": math.nan}]),
    ("min_pixels", [1000, "1000", -1]),
    ("max_pixels", [1000, [1000]]),
    ("image_mean", [None, "0.5", [], [0.5, 0.5], [0.5] * 4, [[0.5]] * 3, True, math.nan, {}]),
    ("image_std", [None, 0, -1, [0.5, 0, 0.5], math.inf, 1e-50, "x"]),
    ("rescale_factor", [None, 0, -1, "1/255", math.nan, True, [1], 10**400]),
    ("do_rescale", [0, 1, "yes"]),
    ("do_normalize", [False, None, 1, "yes"]),
    ("do_resize", [False, None, "yes"]),
    ("do_sample_frames", [False, None, 1]),
    ("do_center_crop", [True, "yes"]),
    ("resample", [2, None, 3.0, "bilinear", [3], True]),
    ("device", ["cuda", 0]),
    ("fps", [None, 0, -1, "2", True, math.nan, math.inf, 1001, [2]]),
    ("num_frames", [0, 1, -8, 8.0, "8", True, 10**9]),
    ("min_frames", [None, 0, -1, 4.0, "4", True]),
    ("max_frames", [None, 1, 6.0, "6", 10**9]),
    ("cap_pixels_per_frame", [1, "yes", [True]]),
    ("max_video_tokens", [None, 0, -1, 7.5, "7"]),
    ("patch_size", [None, 14, 16.0, "16"]),
    ("temporal_patch_size", [1, None]),
    ("merge_size", [1, None]),
    ("video_processor_type", ["Qwen2VLVideoProcessor", "Nobody", 3]),
]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in REFUSED for value in values], ids=repr
)
def test_what_cannot_be_honoured_is_refused_by_its_name_and_value(tmp_path, key, value):
    message = refusal(tmp_path, {key: value})
    assert f"{key} = " in message
    assert " is not possible: expected " in message
    assert "; change it in that file" in message or "; give the checkpoint" in message


def test_a_rate_beside_a_number_of_frames_is_refused_as_the_processor_refuses_it(tmp_path):
    message = refusal(tmp_path, {"fps": 1, "num_frames": 8})
    assert message.endswith(
        "fps = 1 is not possible: expected none beside num_frames = 8; change it in that file, or "
        "say --fps or --num-frames"
    )


def test_budgets_of_the_file_that_contradict_each_other_are_refused(tmp_path):
    message = refusal(tmp_path, {"size": {"shortest_edge": 100, "longest_edge": 99}})
    assert message.startswith("preprocess.min_pixels = 100 is above preprocess.max_pixels = 99")


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({"fps": 1, "num_frames": 8}, {"sampling": SamplingConfig(fps=3.0)}),
        ({"fps": "two"}, {"sampling": SamplingConfig(num_frames=4)}),
        ({"do_sample_frames": False}, {"sampling": SamplingConfig(fps=3.0)}),
        ({"max_frames": 10**9}, {"sampling": SamplingConfig(max_frames=9)}),
        ({"min_frames": 0}, {"sampling": SamplingConfig(min_frames=1)}),
        ({"size": 5}, {"preprocess": PreprocessConfig(1, 99)}),
        ({"size": {"longest_edge": 99}}, {"preprocess": PreprocessConfig(min_pixels=1)}),
        ({"min_pixels": 5}, {"preprocess": PreprocessConfig(min_pixels=6)}),
        ({"cap_pixels_per_frame": 1}, {"preprocess": PreprocessConfig(cap_pixels_per_frame=True)}),
    ],
    ids=str,
)
def test_what_a_build_says_itself_is_not_looked_at_in_the_file(tmp_path, settings, overrides):
    refusal(tmp_path, settings)
    resolved(tmp_path, settings, **overrides)


def test_budgets_under_their_older_names_are_fine_where_they_say_the_same(tmp_path):
    size = {"shortest_edge": 10, "longest_edge": 100}
    found = resolved(tmp_path, {"size": size, "min_pixels": 10, "max_pixels": None}).preprocess
    assert (found.min_pixels, found.max_pixels) == (10, 100)


def test_a_file_as_save_pretrained_writes_it_is_read(tmp_path):
    saved = {
        **{"crop_size": None, "data_format": "channels_first", "default_to_square": True},
        **{"device": None, "do_center_crop": None, "do_convert_rgb": True, "do_normalize": True},
        **{"do_pad": None, "do_rescale": True, "do_resize": True, "do_sample_frames": True},
        **{"fps": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        **{"input_data_format": None, "max_frames": 768, "merge_size": 2, "min_frames": 4},
        **{"num_frames": None, "pad_size": None, "patch_size": 16, "resample": 3},
        **{"processor_class": "Qwen3VLProcessor", "rescale_factor": 0.00392156862745098},
        **{"return_metadata": False, "temporal_patch_size": 2, "video_metadata": None},
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    }
    found = resolved(tmp_path, saved)
    assert found.preprocess.max_pixels == 25165824
    assert found.preprocess.rescale_factor == 1 / 255


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold a JSON object, found a list"),
        ("null", "must hold a JSON object, found a NoneType"),
        ("{", "it is no JSON"),
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        (b'{"fps": "\xff"}', "it is no JSON"),
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, text, message):
    (tmp_path / FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError) as caught:
        resolve_settings(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(ModelError, match=f"{FILE} cannot be read: Is a directory; fetch it again"):
        resolve_settings(tmp_path)


# Which file


def test_the_section_of_the_processors_own_file_comes_first_and_the_images_file_last(tmp_path):
    def found():
        return resolve_settings(tmp_path).sampling.fps

    assert found() == 2.0
    write(tmp_path, {"fps": 3, "image_processor_type": "Qwen2VLImageProcessorFast"}, IMAGES)
    assert found() == 3.0
    write(tmp_path, {"fps": 4})
    assert found() == 4.0
    write(tmp_path, {"fps": 5}, "processor_config.json")
    assert found() == 4.0
    write(tmp_path, {"video_processor": None}, "processor_config.json")
    assert found() == 4.0
    write(tmp_path, {"video_processor": {"fps": 6}}, "processor_config.json")
    assert found() == 6.0
    write(tmp_path, {"video_processor": {}}, "processor_config.json")
    assert found() == 2.0


IMAGES = "preprocessor_config.json"


def test_a_section_that_is_no_object_is_refused(tmp_path):
    write(tmp_path, {"video_processor": [1]}, "processor_config.json")
    with pytest.raises(ModelError, match=r"processor_config.json: video_processor = \[1\] is not"):
        resolve_settings(tmp_path)


def test_a_file_from_which_transformers_makes_another_processor_is_refused(tmp_path):
    write(tmp_path, {"image_processor_type": "Qwen2VLImageProcessor"}, IMAGES)
    with pytest.raises(ModelError, match="image_processor_type = 'Qwen2VLImageProcessor' is not"):
        resolve_settings(tmp_path)


# Where each value comes from


def test_it_is_said_where_each_setting_comes_from(tmp_path):
    own = {"fps": 1, "size": {"shortest_edge": 1, "longest_edge": 9}, "do_rescale": True}
    given = {
        "sampling": SamplingConfig(max_frames=6),
        "preprocess": PreprocessConfig(min_pixels=2),
    }
    assert resolved(tmp_path, own, **given).origins == {
        "sampling.fps": "checkpoint",
        "sampling.min_frames": "default",
        "sampling.max_frames": "caller",
        "preprocess.min_pixels": "caller",
        "preprocess.max_pixels": "checkpoint",
        "preprocess.cap_pixels_per_frame": "default",
        "preprocess.max_video_tokens": "default",
        "preprocess.image_mean": "default",
        "preprocess.image_std": "default",
        "preprocess.rescale_factor": "checkpoint",
    }


def test_only_the_number_of_frames_is_named_where_it_alone_counts(tmp_path):
    origins = resolved(tmp_path, {"num_frames": 8, "max_frames": 9}).origins
    sampling = {name: origin for name, origin in origins.items() if name.startswith("sampling")}
    assert sampling == {"sampling.num_frames": "checkpoint"}


# In the encoder


def test_an_encoder_has_the_settings_of_its_checkpoint(tmp_path, tiny_checkpoint):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    own = json.loads((directory / FILE).read_text())
    write(directory, {**own, "num_frames": 8, "rescale_factor": 0.5})
    encoder = load_encoder(EncoderConfig(model=str(directory), device="cpu"))
    assert encoder.settings.sampling.num_frames == 8
    assert encoder.preprocess.rescale_factor == 0.5
    write(directory, {**own, "patch_size": 14})
    with pytest.raises(ModelError, match="patch_size = 14 is not possible: expected 16"):
        load_encoder(EncoderConfig(model=str(directory), device="cpu"))
