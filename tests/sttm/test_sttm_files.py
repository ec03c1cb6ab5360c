import os

import pytest
import torch

from pipeline.cache import open_cache
from pipeline.sttm import read_features
from schemas.errors import PreprocessError, VideoNotCachedError
from tests.sttm.extraction import (
    GRIDS,
    WIDTH,
    break_metadata,
    failures,
    found_by_verify,
    run,
    run_llava,
    some_features,
    write_llava,
)


def nan_in(features):
    features[4, 1, 0, 3] = float("nan")
    return features


BAD_FEATURES = {
    "nan": (lambda: nan_in(some_features(GRIDS["b"])), "preprocess", "token frame 4 of 6"),
    "flat": (lambda: some_features(GRIDS["b"]).reshape(-1, WIDTH), "preprocess", "(T, H, W, C)"),
    "integers": (lambda: torch.ones(6, 2, 2, WIDTH, dtype=torch.int64), "preprocess", "int64"),
    "empty": (lambda: torch.ones(6, 0, 2, WIDTH), "preprocess", "(6, 0, 2, 16)"),
    "two": (lambda: [torch.ones(6, 2, 2, WIDTH)] * 2, "preprocess", "holds list"),
    "sparse": (lambda: torch.ones(6, 2, 2, WIDTH).to_sparse(), "preprocess", "one dense tensor"),
    "wide": (lambda: torch.ones(6, 2, 2, 8, dtype=torch.bfloat16), "preprocess", "width 8"),
    "float32": (lambda: torch.ones(6, 2, 2, WIDTH), "preprocess", "type F32"),
    "stretched": (
        lambda: torch.ones(1, 1, 1, 1).expand(10**4, 10**4, 10**4, 10**3),
        "preprocess",
        "shorter than its shape",
    ),
    "another grid": (lambda: some_features((5, 2, 2)), "preprocess", "metadata say 6x2x2"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features_become_a_failed_row_and_touch_no_other(folder, tmp_path, case):
    make, kind, message = BAD_FEATURES[case]
    torch.save(make(), folder / "features" / "b.pt")
    result = run(folder, tmp_path / "cache")
    assert result.exit_code == 3
    assert "2/3 videos" in result.stderr
    row = failures(tmp_path / "cache")["b"]
    assert (row["status"], row["error_kind"]) == ("failed", kind)
    assert message in row["error_message"]
    assert list(open_cache(tmp_path / "cache").ids()) == ["a", "long/c"]
    assert found_by_verify(tmp_path / "cache") == []


BAD_METADATA = {
    "another video": (lambda values: values.update(vid="c"), "about video 'c', expected 'b'"),
    "no grid": (lambda values: values.pop("video_grid_thw"), "KeyError('video_grid_thw')"),
    "odd grid": (
        lambda values: values.update(video_grid_thw=torch.tensor([[6, 3, 4]])),
        "not in steps of 2",
    ),
    "another grid": (
        lambda values: values.update(video_grid_thw=torch.tensor([[6, 8, 4]])),
        "metadata say 6x4x2",
    ),
    "grid of floats": (
        lambda values: values.update(video_grid_thw=torch.tensor([[6.0, 4.0, 4.0]])),
        "no metadata of a qwen2_vl extraction",
    ),
    "grid of many": (
        lambda values: values.update(video_grid_thw=torch.zeros(1, 4, dtype=torch.int64)),
        "expected (1, 3)",
    ),
    "no time": (lambda values: values.update(video_sample_fps=0.0), "ZeroDivisionError"),
    "not a number": (lambda values: values.update(video_sample_fps=float("nan")), "nan seconds"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_metadata_that_do_not_fit_become_a_failed_row(folder, tmp_path, case):
    change, message = BAD_METADATA[case]
    break_metadata(folder, change)
    assert run(folder, tmp_path / "cache").exit_code == 3
    row = failures(tmp_path / "cache")["b"]
    assert row["error_kind"] == "preprocess"
    assert message in row["error_message"]


def test_missing_metadata_are_a_failed_row_until_they_are_there(folder, tmp_path):
    pickled = folder / "metadata" / "b.pkl"
    kept = pickled.read_bytes()
    pickled.unlink()
    assert run(folder, tmp_path / "cache").exit_code == 3
    row = failures(tmp_path / "cache")["b"]
    assert row["error_kind"] == "missing"
    assert "--retry-failed" in row["error_message"]
    pickled.write_bytes(kept)
    assert run(folder, tmp_path / "cache").exit_code == 3
    assert run(folder, tmp_path / "cache", "--retry-failed").exit_code == 0
    assert open_cache(tmp_path / "cache").row("b").attempts == 2


def test_a_file_cut_short_is_a_failed_row_and_is_tried_again_when_whole(folder, tmp_path):
    path = folder / "features" / "b.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run(folder, tmp_path / "cache").exit_code == 3
    row = failures(tmp_path / "cache")["b"]
    assert (row["error_kind"], "cut short" in row["error_message"]) == ("unreadable", True)
    path.write_bytes(whole)
    assert run(folder, tmp_path / "cache").exit_code == 0


def test_a_link_that_leads_nowhere_is_a_failed_row(folder, tmp_path):
    (folder / "features" / "gone.pt").symlink_to(tmp_path / "nothing")
    assert run(folder, tmp_path / "cache").exit_code == 3
    assert failures(tmp_path / "cache")["gone"]["error_kind"] == "missing"
    with pytest.raises(VideoNotCachedError, match="no file any more"):
        open_cache(tmp_path / "cache").load("gone")


def test_a_pipe_in_place_of_a_file_is_a_failed_row_and_holds_nothing_up(folder, tmp_path):
    os.mkfifo(folder / "features" / "pipe.pt")
    (folder / "metadata" / "b.pkl").unlink()
    os.mkfifo(folder / "metadata" / "b.pkl")
    assert run(folder, tmp_path / "cache").exit_code == 3
    kinds = {name: row["error_kind"] for name, row in failures(tmp_path / "cache").items()}
    assert kinds == {"pipe": "missing", "b": "missing"}


def test_tower_features_before_the_projector_are_told_apart_from_tokens(tmp_path):
    folder = tmp_path / "F-128_fps-1"
    write_llava(folder, torch.zeros(3, 729, 8, dtype=torch.bfloat16), num_frames=3)
    result = run_llava(folder, tmp_path / "cache")
    assert result.exit_code == 1
    assert "before the projector" in result.stderr


def test_the_number_of_frames_is_compared_with_the_metadata(tmp_path):
    folder = tmp_path / "F-128_fps-1"
    write_llava(folder, some_features((3, 2, 2)), num_frames=4)
    assert run_llava(folder, tmp_path / "cache").exit_code == 3
    assert "metadata say 4x2x2" in failures(tmp_path / "cache")["v"]["error_message"]


def test_bad_features_have_a_type_of_error_for_callers(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "v.pt")
    with pytest.raises(PreprocessError, match="holds dict"):
        read_features(tmp_path / "v.pt")
