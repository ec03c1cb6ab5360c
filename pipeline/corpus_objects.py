"""Sources of a corpus in an object store: a prefix, one object, a glob pattern."""

from collections import Counter
from collections.abc import Sequence

from pipeline.corpus_names import (
    Takes,
    is_pattern,
    is_video_path,
    matches,
    max_depth,
    split_pattern,
    suffix_of,
    taken_by,
)
from pipeline.storage.remote import RemoteFile, list_files, split_url, stat_file
from schemas.errors import ConfigError, CorpusError
from schemas.video import VideoRef


def list_remote(source: str, others: Counter[str]) -> list[VideoRef]:
    """The videos that the URL ``source`` names, by the rules of ``find_videos``.

    ``others`` counts, by suffix, the objects that might have been meant and are not videos. A
    prefix is a folder: names that begin with a dot are skipped, and so are the folders so named.

    Raises:
        CorpusError: nothing is there, or the store does not answer.
    """
    bucket, key = split_url(source)
    try:
        try:
            return [_ref(key.rpartition("/")[2], stat_file(source))]
        except FileNotFoundError:
            pass
        if is_pattern(key):
            fixed, wanted = split_pattern(key.split("/"))
            folder = "".join(f"{name}/" for name in fixed)
            return _listed(bucket, folder, wanted, taken_by(wanted), others)
        folder = f"{key.rstrip('/')}/" if key else ""
        return _listed(bucket, folder, ["**"], is_video_path, others)
    except OSError as error:
        raise CorpusError(
            f"corpus source {source!r} cannot be listed: {error.strerror or error}. Check the URL, "
            "and the store's credentials, region and endpoint."
        ) from error
    except ConfigError as error:
        raise CorpusError(f"corpus source {source!r}: {error}") from error


def _listed(
    bucket: str, folder: str, wanted: Sequence[str], takes: Takes, others: Counter[str]
) -> list[VideoRef]:
    depth = max_depth(wanted)
    refs = []
    is_there = False
    for file in list_files(f"{bucket}/{folder}"):
        is_there = True
        names = split_url(file.url)[1].removeprefix(folder).split("/")
        is_hidden = any(name.startswith(".") for name in names)
        if not names[-1] or is_hidden or (depth is not None and len(names) > depth):
            continue
        if takes(names):
            refs.append(_ref("/".join(names), file))
        elif matches(names, wanted):
            others[suffix_of(names[-1])] += 1
    if not is_there:
        raise CorpusError(
            f"corpus source '{bucket}/{folder}' does not exist: the store lists nothing below it"
        )
    return sorted(refs, key=lambda ref: ref.video_id)


def _ref(video_id: str, file: RemoteFile) -> VideoRef:
    return VideoRef(video_id, file.url, file.num_bytes, file.modified_ns)
