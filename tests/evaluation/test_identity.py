import pytest

from pipeline.evaluation.identity import digest_checkpoint
from schemas.errors import ModelError


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_checkpoint_has_another_digest_when_a_file_that_counts_changes(checkpoint):
    before = digest_checkpoint(checkpoint)
    (checkpoint / "notes.md").write_text("x")
    (checkpoint / "more.txt").mkdir()
    assert digest_checkpoint(checkpoint) == before
    (checkpoint / "config.json").write_text("[]")
    assert digest_checkpoint(checkpoint) != before


def test_a_dangling_link_in_a_checkpoint_is_refused_by_name(checkpoint):
    (checkpoint / "model.safetensors").symlink_to(checkpoint / "gone")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: No such file"):
        digest_checkpoint(checkpoint)


def test_a_file_of_a_checkpoint_that_cannot_be_opened_is_refused_by_name(checkpoint):
    (checkpoint / "loop.json").symlink_to("loop.json")
    with pytest.raises(ModelError, match=r"loop\.json cannot be read: Too many levels"):
        digest_checkpoint(checkpoint)
