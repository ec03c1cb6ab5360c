"""What a build would do: which videos are new, which are done, and in which order."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import compress

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.remote import file_digest
from schemas.video import VideoRef

DONE_COLUMNS = (
    "video_id",
    "status",
    "size_bytes",
    "modified_ns",
    "content_sha256",
    "attempts",
    "fingerprint",
    "path",
    "shard",
    "offset",
    "num_bytes",
    "created_ns",
)
"""All of the index that ``make_plan`` needs."""

LINE_EVERY_SECONDS = 10.0
"""How often something is said while contents are read."""

_NUM_HASHERS = 8

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Task:
    """One video to process.

    ``attempts`` is how often it was tried before, and ``newer_than_ns`` the time of its row in the
    index: a new row must be younger, whatever the clocks of two machines say.
    """

    ref: VideoRef
    attempts: int = 0
    newer_than_ns: int = 0

    @property
    def video_id(self) -> str:
        return self.ref.video_id


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """The difference between a corpus and a cache; ``passed_over`` as ``Corpus`` has it."""

    num_videos: int
    num_done: int
    num_failed_before: int
    todo: tuple[VideoRef, ...]
    attempts: dict[str, int]
    newer_than_ns: dict[str, int]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def todo_bytes(self) -> int:
        return sum(max(0, ref.size_bytes) for ref in self.todo)

    def tasks(self) -> list[Task]:
        """What is to do, the largest files first."""
        by_id = sorted(self.todo, key=lambda ref: ref.video_id)
        return [
            Task(ref, self.attempts.get(ref.video_id, 0), self.newer_than_ns.get(ref.video_id, 0))
            for ref in sorted(by_id, key=lambda ref: ref.size_bytes, reverse=True)
        ]


def make_plan(
    videos: Sequence[VideoRef],
    index: pa.Table | None,
    *,
    fingerprint: str | None = None,
    shard_sizes: Mapping[str, int] | None = None,
    retry_failed: bool = False,
    limit: int | None = None,
    say: Callable[[str], None] | None = None,
) -> BuildPlan:
    """Compare a corpus with a cache's index.

    A video is done when its row has the same path, size and modification time; when only path or
    time differ, its content is read and decides. Videos that failed are left out unless
    ``retry_failed``, or unless the file has changed since. Those whose tensors turned out damaged
    are made again.

    Args:
        videos: the corpus.
        index: one row per video with ``DONE_COLUMNS``, or None for a cache that does not exist yet.
        fingerprint: of the cache's manifest; rows of another one do not count.
        shard_sizes: bytes of each shard that is there; a committed video whose shard is gone or
            too short is to be made again. None takes all shards for present.
        retry_failed: try failed videos again.
        limit: plan at most this many videos.
        say: is told now and then how far the reading of contents has come; None tells stderr.
    """
    if index is None or not index.num_rows:
        return BuildPlan(len(videos), 0, 0, tuple(videos[:limit]), {}, {})
    place = _places(videos, index)
    is_known = (place >= 0) & _holds(pc.equal(index["fingerprint"], fingerprint))[place]
    is_ok = _holds(pc.equal(index["status"], "ok"))[place]
    is_settled = is_known & np.where(is_ok, _is_stored(index, shard_sizes)[place], not retry_failed)
    is_settled &= ~_holds(pc.equal(index["status"], "damaged"))[place]
    is_left_out = is_settled.copy()
    is_left_out[is_settled] = _are_unchanged(
        _chosen(videos, is_settled),
        index,
        place[is_settled],
        say=say or partial(click.echo, err=True),
    )
    is_again = is_known & ~is_left_out
    ids = [ref.video_id for ref in _chosen(videos, is_again)]
    rows = index.select(["attempts", "created_ns"]).take(pa.array(place[is_again]))
    return BuildPlan(
        num_videos=len(videos),
        num_done=int(np.count_nonzero(is_left_out & is_ok)),
        num_failed_before=int(np.count_nonzero(is_left_out & ~is_ok)),
        todo=tuple(_chosen(videos, ~is_left_out)[:limit]),
        attempts=dict(zip(ids, rows["attempts"].to_pylist(), strict=True)),
        newer_than_ns=dict(zip(ids, rows["created_ns"].to_pylist(), strict=True)),
    )


def _are_unchanged(
    videos: Sequence[VideoRef],
    index: pa.Table,
    place: npt.NDArray[np.int64],
    *,
    say: Callable[[str], None],
) -> Bools:
    """Whether each video is what row ``place`` of the index was made from, ``(n,)``."""
    sizes = np.fromiter((ref.size_bytes for ref in videos), np.int64, len(videos))
    times = np.fromiter((ref.modified_ns for ref in videos), np.int64, len(videos))
    is_same_size = sizes == index["size_bytes"].to_numpy()[place]
    is_same: Bools = is_same_size & (times == index["modified_ns"].to_numpy()[place])
    paths = pa.array([ref.printable_path for ref in _chosen(videos, is_same)], pa.string())
    is_same[is_same] = _holds(pc.equal(index["path"].take(pa.array(place[is_same])), paths))
    contents = index["content_sha256"]
    is_doubtful = is_same_size & ~is_same & np.asarray(contents.is_valid())[place]
    is_same[is_doubtful] = have_contents(
        _chosen(videos, is_doubtful),
        contents.take(pa.array(place[is_doubtful])).to_pylist(),
        say=say,
    )
    return is_same


def have_contents(
    videos: Sequence[VideoRef],
    digests: Sequence[str],
    *,
    say: Callable[[str], None],
    every_seconds: float = LINE_EVERY_SECONDS,
) -> list[bool]:
    """Read files, several at a time, and compare each with its sha256.

    A file that cannot be read does not have the content asked for.
    """
    total_bytes = sum(ref.size_bytes for ref in videos)
    same: list[bool] = []
    done_bytes, last_line = 0, time.monotonic()
    for ref, digest, found in zip(videos, digests, _contents(videos), strict=True):
        same.append(found == digest)
        done_bytes += ref.size_bytes
        if time.monotonic() - last_line >= every_seconds:
            last_line = time.monotonic()
            say(
                f"read {len(same)} of {len(videos)} videos whose path or time changed, "
                f"{done_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB"
            )
    return same


def _contents(videos: Sequence[VideoRef]) -> Iterator[str | None]:
    """The digest of each file, in order, a few files ahead."""
    pool = ThreadPoolExecutor(_NUM_HASHERS, thread_name_prefix="hash")
    waiting: deque[Future[str | None]] = deque()
    try:
        for ref in videos:
            waiting.append(pool.submit(_content, ref.path))
            if len(waiting) > 2 * _NUM_HASHERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _content(path: str) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


def _places(videos: Sequence[VideoRef], index: pa.Table) -> npt.NDArray[np.int64]:
    """The index row of each video, ``(n,)``; -1 where there is none."""
    # An id that is not valid Unicode is in no index, and Arrow would refuse it as text.
    ids = [ref.video_id.encode("utf-8", "surrogatepass") for ref in videos]
    known = index["video_id"].cast(pa.binary())
    found = pc.index_in(pa.array(ids, pa.binary()), value_set=known)
    return np.asarray(pc.fill_null(found, -1), np.int64)


def _is_stored(index: pa.Table, shard_sizes: Mapping[str, int] | None) -> Bools:
    """Whether each row's bytes are there, ``(rows,)``; a row without a place has none."""
    if shard_sizes is None:
        return np.ones(index.num_rows, np.bool_)
    names = pc.unique(index["shard"])
    lengths = pa.array([shard_sizes.get(name, 0) for name in names.to_pylist()], pa.int64())
    length = lengths.take(pc.index_in(index["shard"], value_set=names).combine_chunks())
    offset, num_bytes = index["offset"].combine_chunks(), index["num_bytes"].combine_chunks()
    # The end, offset + num_bytes, may be beyond 64 bits in a row that was tampered with.
    is_place = pc.and_(pc.greater_equal(offset, 0), pc.greater_equal(num_bytes, 0))
    return _holds(pc.and_(is_place, pc.less_equal(num_bytes, pc.subtract(length, offset))))


def _chosen(videos: Sequence[VideoRef], is_chosen: Bools) -> list[VideoRef]:
    return list(compress(videos, is_chosen.tolist()))


def _holds(condition: pa.Array | pa.ChunkedArray) -> Bools:
    """True where the condition is, False where it is not or is unknown."""
    holds: Bools = np.asarray(pc.fill_null(condition, False), np.bool_)
    return holds
