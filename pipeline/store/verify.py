"""Checking every committed byte of a cache, and what lies about that nobody refers to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.store.atomic import TEMPORARY_SUFFIX
from pipeline.store.fragment import INDEX_FOLDER, fragment_paths
from pipeline.store.index import Index, scan_fragments
from pipeline.store.manifest import read_manifest
from pipeline.store.merge import merge_fragments
from pipeline.store.reader import open_video
from pipeline.store.shard import SHARD_FOLDER, SHARD_SUFFIX, shard_path
from schemas.errors import TokenreelError
from schemas.index import IndexRow

FINDINGS = ("damaged_video", "damaged_shard", "damaged_fragment", "orphan_shard", "temporary_file")
"""What ``verify_cache`` finds; orphans and temporary files are harmless debris of a crash."""


@dataclass(frozen=True, slots=True)
class VerifyFinding:
    """One thing that is not as committed; ``kind`` is one of ``FINDINGS``."""

    kind: str
    path: Path
    video_id: str | None
    error: str

    @property
    def is_damage(self) -> bool:
        """Whether data are lost; debris may be removed while no build runs."""
        return self.kind.startswith("damaged")


def verify_cache(root: Path) -> Iterator[VerifyFinding]:
    """Read all that is committed and say what is wrong; nothing is said of what is right.

    Every fragment, the header of every shard by the rules of stock safetensors, and of every
    video the fingerprint, the head's digest and the digest of every feature row.

    Args:
        root: the cache folder.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheCorruptError: its manifest cannot be read.
    """
    fingerprint = read_manifest(root).fingerprint
    fragments, damage = scan_fragments(root)
    for path, error in damage.items():
        yield VerifyFinding("damaged_fragment", path, None, str(error))
    rows: list[IndexRow] = []
    yield from _check_rows(root, Index(merge_fragments(fragments)), rows)
    rows.sort(key=lambda row: (row.shard or "", row.offset or 0))
    for name, members in groupby(rows, key=lambda row: row.shard or ""):
        yield from _check_shard(root, shard_path(root, name), list(members), fingerprint)
    used = {name for part in fragments for name in part.table["shard"].drop_null().to_pylist()}
    names = {fragment.name for fragment in fragments}
    is_whole = not damage and names == {path.stem for path in fragment_paths(root)}
    yield from _find_debris(root, used if is_whole else None)


def _check_rows(root: Path, index: Index, good: list[IndexRow]) -> Iterator[VerifyFinding]:
    """Say which rows contradict themselves; committed ones that do not are added to ``good``."""
    for video_id in index.table["video_id"].to_pylist():
        try:
            row = index.row(video_id)
        except TokenreelError as error:
            yield VerifyFinding("damaged_video", root / INDEX_FOLDER, video_id, str(error))
        else:
            if row.status == "ok":
                good.append(row)


def _check_shard(
    root: Path, path: Path, rows: Sequence[IndexRow], fingerprint: str
) -> Iterator[VerifyFinding]:
    readable = []
    for row in rows:
        try:
            with open_video(root, row, fingerprint=fingerprint) as reader:
                size = reader.head.num_rows * reader.row_bytes
                reader.read_rows(reader.head.num_rows, memoryview(bytearray(size)))
            readable.append(row)
        except TokenreelError as error:
            yield VerifyFinding("damaged_video", path, row.video_id, str(error))
    if readable:
        problem = _header_problem(path, readable)
        if problem:
            yield VerifyFinding("damaged_shard", path, None, problem)


def _header_problem(path: Path, rows: Sequence[IndexRow]) -> str | None:
    """What other readers of safetensors would stumble over; ours do not need the header."""
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        return f"the header is not safetensors: {error}"
    entries.pop("__metadata__", None)
    stored = {
        (name.rpartition("/")[2], entry["dtype"], *entry["shape"], *entry["data_offsets"])
        for name, entry in entries.items()
    }
    for row in rows:
        begin = (row.offset or 0) - 8 - length
        for spec in row.layout or ():
            place = (begin + spec.offset, begin + spec.end)
            if (spec.name, spec.dtype, *spec.shape, *place) not in stored:
                return f"the header does not list {spec.name!r} of video {row.video_id!r}"
    return None


def _find_debris(root: Path, used: set[str] | None) -> Iterator[VerifyFinding]:
    """Files nobody refers to; ``used`` is None when a damaged fragment may refer to any shard."""
    for folder in (root, root / INDEX_FOLDER, root / SHARD_FOLDER):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.name.endswith(TEMPORARY_SUFFIX):
                yield VerifyFinding("temporary_file", path, None, "left by a crash, or in writing")
            elif path.name.endswith(SHARD_SUFFIX) and used is not None and path.stem not in used:
                yield VerifyFinding("orphan_shard", path, None, "no index row refers to it")
