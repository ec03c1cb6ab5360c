"""Checking every committed byte of a cache, and what lies about that nobody refers to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from safetensors import SafetensorError, safe_open

from pipeline.storage import RangeReader, Storage, is_outage
from pipeline.storage.base import TEMPORARY_SUFFIX
from pipeline.store.buckets import BucketFile
from pipeline.store.fp8 import check_scale
from pipeline.store.fragment import INDEX_FOLDER, fragment_file, fragment_names, named_bucket
from pipeline.store.index import Index, scan_fragments
from pipeline.store.manifest import read_manifest
from pipeline.store.merge import Fragment, merge_fragments
from pipeline.store.reader import open_video
from pipeline.store.shard import SHARD_FOLDER, SHARD_SUFFIX, shard_file
from schemas.errors import (
    CacheCorruptError,
    CacheUnreachableError,
    IndexCorruptError,
    TokenreelError,
)
from schemas.index import IndexRow

FINDINGS = ("damaged_video", "damaged_shard", "damaged_fragment", "orphan_shard", "temporary_file")
"""What ``verify_cache`` finds; orphans and temporary files are harmless debris of a crash."""


MAX_HEADER_BYTES = 100 * 2**20
"""What stock safetensors accepts."""


@dataclass(frozen=True, slots=True)
class VerifyFinding:
    """One thing that is not as committed; ``kind`` is one of ``FINDINGS``.

    ``error_kind`` is the class of the error. ``videos`` are those to be encoded again, each with
    the ``created_ns`` of the row that was looked at; which ones a fragment held is not known.
    """

    kind: str
    where: str
    video_id: str | None
    error: str
    error_kind: str = ""
    videos: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_damage(self) -> bool:
        """Whether data are lost; debris may be removed while no build runs."""
        return self.kind.startswith("damaged")


def verify_cache(storage: Storage) -> Iterator[VerifyFinding]:
    """Read all that is committed and say what is wrong; nothing is said of what is right.

    Every fragment, the header of every shard by the rules of stock safetensors, and of every
    video the fingerprint, the head's digest and the digest of every feature row.

    Args:
        storage: where the cache lies.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheCorruptError: its manifest is damaged.
        CacheUnreachableError: something cannot be read now, which says nothing about damage.
    """
    fingerprint = read_manifest(storage).fingerprint
    fragments, damage = scan_fragments(storage)
    for name, error in {**damage, **_check_look_ups(storage, fragments)}.items():
        where = storage.where(fragment_file(name))
        yield VerifyFinding("damaged_fragment", where, None, str(error), type(error).__name__)
    rows: list[IndexRow] = []
    yield from _check_rows(storage, Index(merge_fragments(fragments)), rows)
    rows.sort(key=lambda row: (row.shard or "", row.offset or 0))
    for name, members in groupby(rows, key=lambda row: row.shard or ""):
        yield from _check_shard(storage, shard_file(name), list(members), fingerprint)
    used = {name for part in fragments for name in part.table["shard"].drop_null().to_pylist()}
    names = {fragment.name for fragment in fragments}
    is_whole = not damage and names == set(fragment_names(storage))
    yield from _find_debris(storage, used if is_whole else None)


def _check_look_ups(
    storage: Storage, fragments: Sequence[Fragment]
) -> dict[str, IndexCorruptError]:
    """Which bucket fragments cannot be looked up in, though all their rows can be read."""
    damage = {}
    for name in (fragment.name for fragment in fragments):
        try:
            if named_bucket(name) is not None:
                BucketFile(storage, name).check()
        except IndexCorruptError as error:
            damage[name] = error
        except FileNotFoundError:
            continue  # compaction replaced it by its equal
    return damage


def _check_rows(storage: Storage, index: Index, good: list[IndexRow]) -> Iterator[VerifyFinding]:
    """Say which rows contradict themselves; committed ones that do not are added to ``good``."""
    columns = (index.table[name].to_pylist() for name in ("video_id", "created_ns"))
    for video_id, created_ns in zip(*columns, strict=True):
        try:
            row = index.row(video_id)
        except TokenreelError as error:
            yield _damaged_video(storage.where(INDEX_FOLDER), video_id, created_ns, error)
        else:
            if row.status == "ok":
                good.append(row)


def _damaged_video(
    where: str, video_id: str, created_ns: int, error: TokenreelError
) -> VerifyFinding:
    return VerifyFinding(
        "damaged_video", where, video_id, str(error), type(error).__name__, {video_id: created_ns}
    )


def _check_shard(
    storage: Storage, name: str, rows: Sequence[IndexRow], fingerprint: str
) -> Iterator[VerifyFinding]:
    where = storage.where(name)
    readable = []
    for row in rows:
        try:
            num_rows = row.tokens_after or 0
            with open_video(storage, row, fingerprint=fingerprint, num_rows=num_rows) as reader:
                size = reader.head.num_rows * reader.row_bytes
                reader.read_rows(reader.head.num_rows, memoryview(bytearray(size)))
                if reader.head.scale is not None:
                    check_scale(reader.head.scale, str(row.dtype))
            readable.append(row)
        except CacheUnreachableError:
            raise
        except TokenreelError as error:
            yield _damaged_video(where, row.video_id, row.created_ns, error)
    if readable:
        problem = _header_problem(storage, name, readable)
        if problem:
            videos = {row.video_id: row.created_ns for row in readable}
            yield VerifyFinding(
                "damaged_shard", where, None, problem, CacheCorruptError.__name__, videos
            )


def _header_problem(storage: Storage, name: str, rows: Sequence[IndexRow]) -> str | None:
    """What other readers of safetensors would stumble over; ours do not need the header."""
    try:
        with storage.open_range(name) as source:
            length = int.from_bytes(_read_whole(source, 0, 8), "little")
            if length > MAX_HEADER_BYTES:
                return f"the header is not safetensors: it claims {length} bytes"
            entries = json.loads(_read_whole(source, 8, length))
        if storage.can_rename:
            with safe_open(storage.where(name), framework="numpy"):
                pass
    except (SafetensorError, OSError, RuntimeError, ValueError, RecursionError) as error:
        if is_outage(error):
            raise CacheUnreachableError(
                f"{storage.where(name)} cannot be read now: {error}"
            ) from error
        return f"the header is not safetensors: {error}"
    return _unlisted(entries, length, rows)


def _unlisted(entries: object, length: int, rows: Sequence[IndexRow]) -> str | None:
    """Which tensor of ``rows`` a header of ``length`` bytes does not list as it lies."""
    try:
        stored = {
            (name.rpartition("/")[2], entry["dtype"], *entry["shape"], *entry["data_offsets"])
            for name, entry in dict(entries).items()  # type: ignore[call-overload]
            if name != "__metadata__"
        }
    except (TypeError, ValueError, KeyError) as error:
        return f"the header is not safetensors: {error!r}"
    for row in rows:
        begin = (row.offset or 0) - 8 - length
        for spec in row.layout or ():
            place = (begin + spec.offset, begin + spec.end)
            if (spec.name, spec.dtype, *spec.shape, *place) not in stored:
                return f"the header does not list {spec.name!r} of video {row.video_id!r}"
    return None


def _read_whole(source: RangeReader, position: int, num_bytes: int) -> bytes:
    source.announce(position, num_bytes)
    if source.end is not None and position + num_bytes > source.end:
        raise ValueError(f"it ends at byte {source.end}, expected {position + num_bytes}")
    data = bytearray(num_bytes)
    rest = memoryview(data)
    while rest:
        count = source.fill([rest], position + num_bytes - len(rest))
        if not count:
            raise ValueError(f"it ends early, expected {position + num_bytes} bytes")
        rest = rest[count:]
    return bytes(data)


def _find_debris(storage: Storage, used: set[str] | None) -> Iterator[VerifyFinding]:
    """Files nobody refers to; ``used`` is None when a damaged fragment may refer to any shard."""
    for folder in ("", f"{INDEX_FOLDER}/", f"{SHARD_FOLDER}/"):
        for file in storage.files(folder.rstrip("/")):
            where = storage.where(folder + file.name)
            stem = file.name.removesuffix(SHARD_SUFFIX)
            if file.name.endswith(TEMPORARY_SUFFIX):
                yield VerifyFinding("temporary_file", where, None, "left by a crash, or in writing")
            elif stem != file.name and used is not None and stem not in used:
                yield VerifyFinding("orphan_shard", where, None, "no index row refers to it")
