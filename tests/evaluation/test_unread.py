from pathlib import Path

import pytest

from pipeline.evaluation.unread import MOST_UNREACHABLE, UnreadVideos
from schemas.errors import CacheCorruptError, CacheUnreachableError, ChecksumError, ModelError

AWAY = CacheUnreachableError("no route")
DAMAGED = ChecksumError("bad digest")


def collect(unread, video_id, error=None):
    with unread.collecting(video_id):
        if error:
            raise error


@pytest.fixture
def unread():
    return UnreadVideos("there/cache", Path("run/answers.jsonl"))


def test_only_what_could_not_be_read_is_told(unread):
    collect(unread, "a")
    assert unread.raise_any() is None
    collect(unread, "b", DAMAGED)
    collect(unread, "c")
    with pytest.raises(CacheCorruptError, match=r"^1 videos could not be read: 'b'") as caught:
        unread.raise_any()
    assert "'a'" not in str(caught.value)
    assert "'c'" not in str(caught.value)


def test_damage_is_told_with_its_videos_and_what_to_do(unread):
    for name in "abcde":
        collect(unread, name, DAMAGED)
    collect(unread, "f", AWAY)
    with pytest.raises(
        CacheCorruptError, match=r"^6 videos could not be read: 'a' \(bad"
    ) as caught:
        unread.raise_any()
    told = str(caught.value)
    assert "'c' (bad digest); and 3 more" in told
    assert "kept in run/answers.jsonl" in told
    assert "`tokenreel verify there/cache --discard`" in told


def test_unreadable_videos_alone_are_not_called_damaged(unread):
    collect(unread, "a", AWAY)
    with pytest.raises(CacheUnreachableError, match=r"'a' .*Make them readable") as caught:
        unread.raise_any()
    assert "--discard" not in str(caught.value)


def test_a_place_that_is_away_is_given_up_and_single_failures_are_not(unread):
    for name in "abcdef":
        collect(unread, name, AWAY)
        collect(unread, f"{name} again")
    for number in range(MOST_UNREACHABLE - 1):
        collect(unread, f"g{number}", AWAY)
    with pytest.raises(CacheUnreachableError, match="9 videos could not be read"):
        collect(unread, "h", AWAY)


def test_other_errors_pass(unread):
    with pytest.raises(ModelError):
        collect(unread, "a", ModelError("odd"))
