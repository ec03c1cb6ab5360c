"""Taking what is damaged out of service, so that the next build makes just that again."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.storage import Storage
from pipeline.storage.base import errors_as_cache_error
from pipeline.store.fragment import (
    FRAGMENT_SUFFIX,
    INDEX_FOLDER,
    fragment_file,
    pack_fragment,
    read_fragment,
)
from pipeline.store.handover import publish_fragment
from pipeline.store.index import scan_fragments
from pipeline.store.manifest import read_manifest
from pipeline.store.merge import merge_fragments
from pipeline.store.reader import MEND
from pipeline.store.verify import VerifyFinding
from schemas.columns import scalars, stored_type
from schemas.errors import IndexCorruptError
from schemas.index import INDEX_SCHEMA, IndexRow
from schemas.video import Scalar

LAST_NS = 2**63 - 1
"""No row can be younger than one of this time."""

DAMAGED_SUFFIX = ".damaged"
"""Added to the name of a fragment that cannot be read; no reader takes files of this name."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """What was taken out of service.

    ``videos`` are now "damaged" in the index, ``fragments`` stand under another name; the next
    build encodes again what either held. ``by_hand`` are fragments that somebody has to remove:
    the storage cannot rename, or a row in them is of the last moment that there is.
    """

    videos: tuple[str, ...]
    fragments: tuple[str, ...]
    by_hand: tuple[str, ...]

    def lines(self) -> list[str]:
        """The outcome for a person."""
        counts = f"videos {len(self.videos)}, index fragments {len(self.fragments)}"
        return [
            f"out of service: {counts}",
            *(f"set aside: {where}{DAMAGED_SUFFIX}" for where in self.fragments),
            *(f"remove by hand: {where}" for where in self.by_hand),
        ]


def discard_damage(storage: Storage, findings: Sequence[VerifyFinding]) -> Discarded:
    """Take out of service what ``verify_cache`` found damaged; sound videos are not touched.

    Each damaged video gets a row with status "damaged" that is one nanosecond younger than the
    one that was looked at: a row that a build commits meanwhile is younger still, and counts.
    A fragment that cannot be read gets another name, where the storage can rename; rows of it that
    can be read are first committed anew.

    Args:
        storage: where the cache lies.
        findings: of this cache.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheCorruptError: its manifest cannot be read.
        CacheError: a file cannot be written or renamed.
    """
    fingerprint = read_manifest(storage).fingerprint
    unreadable = [f.where for f in findings if f.kind == "damaged_fragment"]
    if storage.can_rename:
        for where in unreadable:
            _set_aside(storage, where)
    fragments, _ = scan_fragments(storage)
    bad = _still_bad(merge_fragments(fragments), findings)
    rows = [_damaged_row(row, why, fingerprint) for row, why in bad if _created(row) < LAST_NS]
    if rows:
        storage.create(fragment_file(_name(rows)), [pack_fragment(rows)])
    lasting = {row["video_id"][0] for row, _ in bad if _created(row) == LAST_NS}
    by_hand = [] if storage.can_rename else unreadable
    for fragment in fragments:
        if lasting & set(fragment.table["video_id"]):
            by_hand.append(storage.where(fragment_file(fragment.name)))
    return Discarded(
        videos=tuple(row.video_id for row in rows),
        fragments=tuple(unreadable) if storage.can_rename else (),
        by_hand=tuple(by_hand),
    )


def _set_aside(storage: Storage, where: str) -> None:
    name = f"{INDEX_FOLDER}/{where.rpartition('/')[2]}"
    _save_rows(storage, where.rpartition("/")[2].removesuffix(FRAGMENT_SUFFIX))
    with (
        errors_as_cache_error(f"rename {where}", "Correct the permissions"),
        suppress(FileNotFoundError),  # compaction or another process took it
    ):
        storage.rename(name, name + DAMAGED_SUFFIX)
        storage.flush(INDEX_FOLDER)


def _save_rows(storage: Storage, name: str) -> None:
    """Commit the rows of a fragment anew if only what finds them there is damaged."""
    with suppress(IndexCorruptError, FileNotFoundError):
        publish_fragment(storage, read_fragment(storage, name))


def _still_bad(
    table: pa.Table, findings: Sequence[VerifyFinding]
) -> list[tuple[pa.Table, VerifyFinding]]:
    """Each damaged video's row, a table of one, if it is still the one that was looked at."""
    reasons = {video_id: finding for finding in findings for video_id in finding.videos}
    found = []
    for place, video_id in enumerate(table["video_id"].to_pylist()):
        row = table.slice(place, 1)
        if video_id in reasons and _created(row) == reasons[video_id].videos[video_id]:
            found.append((row, reasons[video_id]))
    return found


def _created(row: pa.Table) -> int:
    return int(row["created_ns"][0].as_py())


def _damaged_row(row: pa.Table, finding: VerifyFinding, fingerprint: str) -> IndexRow:
    """What stays true of ``row``: which file it is about."""
    further = [name for name in row.column_names if name not in INDEX_SCHEMA.names]
    return IndexRow(
        video_id=row["video_id"][0].as_py(),
        path=_value(row, "path") or "",
        status="damaged",
        fingerprint=fingerprint,
        size_bytes=_value(row, "size_bytes"),
        modified_ns=_value(row, "modified_ns"),
        content_sha256=_value(row, "content_sha256"),
        attempts=_value(row, "attempts"),
        created_ns=_created(row) + 1,
        writer=f"{socket.gethostname()}:{os.getpid()}",
        error_kind=finding.error_kind,
        error_message=finding.error.removesuffix(MEND).rstrip(),
        extra={name: _further_value(row[name]) for name in further},
    )


def _value(row: pa.Table, name: str) -> Any:
    """A value of ``row``, None for one that cannot be read."""
    try:
        return row[name][0].as_py()
    except (ValueError, OverflowError):
        return None


def _further_value(column: pa.ChunkedArray) -> Scalar:
    """The one value of a further column, None for what no corpus can have given."""
    try:
        return scalars(column.combine_chunks())[0] if stored_type(column.type) else None
    except ValueError:
        return None


def _name(rows: Sequence[IndexRow]) -> str:
    """Whichever process discards the same rows gives the same name, and commits them once."""
    outcome = sorted([row.video_id, row.status, row.created_ns] for row in rows)
    return hashlib.sha256(json.dumps(outcome).encode()).hexdigest()
