"""Which video of a cache an annotation means."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.errors import ConfigError


class VideoNames(Protocol):
    """What is asked of a cache: a ``TokenCache``, or anything with ``in`` and ``ids``."""

    def __contains__(self, video_id: object) -> bool: ...

    def ids(self) -> Iterator[str]:
        """Ids of the loadable videos."""
        ...


@dataclass(frozen=True, slots=True)
class Matched:
    """``video_ids`` of the cache by the annotation's name; ``missing`` names, in their order."""

    video_ids: Mapping[str, str]
    missing: tuple[str, ...]


def match_videos(names: Iterable[str], cache: VideoNames) -> Matched:
    """Find the cached video that each name means.

    A name is an id; or an id but for the extension; or its last part is that of an id, extensions
    aside. The first of these that fits decides, and it must fit one video only.

    Args:
        names: as annotations write them; repeats are welcome.
        cache: the loadable videos.

    Raises:
        ConfigError: a name that fits several videos.
    """
    wanted = list(dict.fromkeys(names))
    found = {name: name for name in wanted if name in cache}
    left = [name for name in wanted if name not in found]
    by_spelling = _ids_by_spelling(cache.ids(), left) if left else {}
    for name in left:
        fits = next((by_spelling[key] for key in _spellings(name) if key in by_spelling), [])
        if len(fits) > 1:
            raise ConfigError(
                f"video {name!r} of the questions may be any of {sorted(fits)[:3]} in the cache; "
                "write the whole video_id"
            )
        if fits:
            found[name] = fits[0]
    return Matched(found, tuple(name for name in left if name not in found))


def _ids_by_spelling(
    video_ids: Iterable[str], names: Sequence[str]
) -> dict[tuple[str, str], list[str]]:
    """The ids that a spelling of one of the names may mean."""
    wanted = {spelling for name in names for spelling in _spellings(name)}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for video_id in video_ids:
        bare = _bare(video_id)
        for spelling in (("path", bare), ("last", bare.rpartition("/")[2])):
            if spelling in wanted:
                found[spelling].append(video_id)
    return found


def _spellings(name: str) -> list[tuple[str, str]]:
    """What to look for, the likeliest first; a dot may begin an extension or be part of a name."""
    paths = [name, _bare(name)]
    return [
        *(("path", path) for path in paths),
        *(("last", path.rpartition("/")[2]) for path in paths),
    ]


def _bare(path: str) -> str:
    """A path without its extension."""
    folder, slash, last = path.rpartition("/")
    stem = last[: last.rindex(".")] if "." in last[1:] else last
    return f"{folder}{slash}{stem}"
