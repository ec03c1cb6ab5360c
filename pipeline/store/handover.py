"""Fragments that give way to merged ones: what is new is there before what it replaces goes.

One order for every compaction. At each point where it may be killed, all rows that count are in
some fragment, and a shard that no row refers to any more is young; docs/decisions/compaction.md
says more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import pyarrow as pa

from pipeline.storage import Storage
from pipeline.store.buckets import pack_bucket
from pipeline.store.fragment import INDEX_FOLDER, fragment_file, pack_table, parse_fragment
from pipeline.store.shard import shard_file
from schemas.errors import IndexCorruptError
from schemas.index import DIGEST_NAME


def publish_fragment(storage: Storage, table: pa.Table, *, bucket: int | None = None) -> str:
    """Write rows as a fragment, after reading it on trial.

    Args:
        storage: where the cache lies.
        table: the rows, by video id.
        bucket: the one that all rows are of; None for a fragment that may hold any.

    Returns:
        The fragment's name, made from the digest of its bytes.

    Raises:
        IndexCorruptError: it would not hold the rows it was made of; nothing is written.
        CacheError: it cannot be written.
    """
    table = table.combine_chunks()
    data = pack_table(table) if bucket is None else pack_bucket(table)
    prefix = "" if bucket is None else f"{bucket:02x}-"
    name = prefix + hashlib.sha256(data).hexdigest()
    where = storage.where(fragment_file(name))
    if not parse_fragment(pa.BufferReader(data), where)["video_id"].equals(table["video_id"]):
        raise IndexCorruptError(f"merged fragment {where} would not hold the rows it was made of")
    storage.create(fragment_file(name), [data])
    return name


def begin_grace(storage: Storage, fading: Collection[str]) -> None:
    """Make shards young whose last row is about to go: readers who hold it may still load.

    Raises:
        OSError: a file cannot be touched.
    """
    for shard in filter(DIGEST_NAME.fullmatch, sorted(fading)):
        storage.touch(shard_file(shard))


def retire_fragments(
    storage: Storage, names: Collection[str], *, fading: Collection[str] = ()
) -> None:
    """Remove fragments whose rows that count are published.

    Shards are touched last of all before the removal, so that however long publishing took, the
    grace period begins when the last row goes. What is new is flushed after that and before the
    first removal, also where a second compaction has published it.

    Args:
        storage: where the cache lies.
        names: the fragments.
        fading: shards that no row refers to once they are gone.

    Raises:
        OSError: a file cannot be touched or removed; no row that counts is lost.
    """
    begin_grace(storage, fading)
    storage.flush(INDEX_FOLDER)
    for name in sorted(names):
        storage.remove(fragment_file(name))
    storage.flush(INDEX_FOLDER)
