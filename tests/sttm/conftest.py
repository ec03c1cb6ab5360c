import pytest

from tests.sttm.extraction import GRIDS, qwen2_metadata, some_features, write_video


@pytest.fixture
def folder(tmp_path):
    """An extraction with three good videos."""
    folder = tmp_path / "F-256_fps-2"
    for seed, (video_id, shape) in enumerate(GRIDS.items()):
        write_video(folder, video_id, some_features(shape, seed), qwen2_metadata(video_id, shape))
    return folder
