import pytest

from pipeline.evaluation.naming import match_videos
from schemas.errors import ConfigError


class Names(frozenset):
    """The ids of a cache."""

    def ids(self):
        return iter(sorted(self))


@pytest.mark.parametrize(
    ("name", "video_id"),
    [
        ("a/b.mp4", "a/b.mp4"),
        ("a/b", "a/b.mp4"),
        ("a/b.avi", "a/b.mp4"),
        ("b", "a/b.mp4"),
        ("elsewhere/b.mkv", "a/b.mp4"),
        ("v1.5", "v1.5.mp4"),
        ("x", "x"),
        (".hidden", ".hidden.mp4"),
    ],
)
def test_a_name_finds_its_video_whole_without_extension_or_by_its_last_part(name, video_id):
    cache = Names({"a/b.mp4", "v1.5.mp4", "x", "y/x.mp4", ".hidden.mp4"})
    assert match_videos([name], cache).video_ids == {name: video_id}


def test_the_nearer_spelling_wins():
    cache = Names({"a/b.mp4", "c/b.mp4", "b.webm"})
    assert match_videos(["b.mp4", "a/b"], cache).video_ids == {"b.mp4": "b.webm", "a/b": "a/b.mp4"}


def test_missing_names_are_told_once_in_their_order():
    matched = match_videos(["z", "a", "z", "q"], Names({"a.mp4"}))
    assert matched.missing == ("z", "q")
    assert matched.video_ids == {"a": "a.mp4"}


def test_a_name_that_fits_two_videos_is_refused():
    with pytest.raises(ConfigError, match=r"'b.mp4' .* any of \['a/b.mp4', 'c/b.mp4'\]"):
        match_videos(["b.mp4"], Names({"a/b.mp4", "c/b.mp4"}))
