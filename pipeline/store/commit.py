"""Committing videos: the shard first, the fragment last, so that a crash leaves no half row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Storage
from pipeline.store.fragment import fragment_file, pack_fragment, read_fragment
from pipeline.store.index import row_at
from pipeline.store.record import VideoRecord
from pipeline.store.shard import write_shard
from schemas.index import IndexRow


@dataclass(frozen=True, slots=True)
class PendingVideo:
    """An encoded video that has no place yet.

    ``fields`` are the arguments of its ``IndexRow`` that the commit does not know itself: all but
    ``status``, ``key``, ``shard``, ``offset``, ``num_bytes``, ``head_digest`` and ``layout``.
    """

    fields: Mapping[str, Any]
    record: VideoRecord

    def placed(self, shard: str, offset: int) -> IndexRow:
        """The row of this video once its bytes stand at ``offset`` of ``shard``."""
        return IndexRow(
            **self.fields,
            status="ok",
            key=self.record.key,
            shard=shard,
            offset=offset,
            num_bytes=self.record.layout.num_bytes,
            head_digest=self.record.head_digest,
            layout=self.record.layout,
        )


def commit_videos(storage: Storage, entries: Sequence[PendingVideo | IndexRow]) -> list[IndexRow]:
    """Make a task's results visible to readers, all at once and for good.

    The fragment's name is a digest of the task's outcome and is created only once: when the same
    task was committed before, by this or another process, that commit stands.

    Args:
        storage: where the cache lies; its manifest is written by ``manifest.create_or_check``.
        entries: encoded videos, and complete rows of videos that failed.

    Returns:
        The committed rows: those of ``entries`` in their order, or the earlier commit's.

    Raises:
        CacheError: the disk is full or cannot be written; no row became visible.
        CacheCorruptError: fields that contradict the record.
    """
    if not entries:
        return []
    pending = [entry for entry in entries if isinstance(entry, PendingVideo)]
    places: list[tuple[str, int]] = []
    if pending:
        shard = write_shard(storage, [video.record for video in pending])
        places = [(shard.name, offset) for offset in shard.offsets]
    following = iter(places)
    rows = [
        entry.placed(*next(following)) if isinstance(entry, PendingVideo) else entry
        for entry in entries
    ]
    name = _task_digest(rows)
    data = pack_fragment(rows)
    while not storage.create(fragment_file(name), [data]):
        with suppress(FileNotFoundError):  # compaction merged it away: commit again
            table = read_fragment(storage, name)
            place_of = {name: place for place, name in enumerate(table["video_id"].to_pylist())}
            return [row_at(table, place_of[row.video_id], row.video_id) for row in rows]
    return rows


def _task_digest(rows: Sequence[IndexRow]) -> str:
    """What was done, not by whom or when: equal work has an equal name."""
    outcome = sorted(
        [
            row.video_id,
            row.fingerprint,
            row.status,
            row.key or "",
            row.error_kind or "",
            row.attempts,
            row.size_bytes,
            row.modified_ns,
        ]
        for row in rows
    )
    return hashlib.sha256(json.dumps(outcome).encode()).hexdigest()
