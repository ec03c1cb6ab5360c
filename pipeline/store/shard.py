"""Shards: safetensors files in which one video is one contiguous, aligned byte range.

The library's own writer sorts tensors by type, which tears a video apart; this one keeps the
order, and files it writes open with stock ``safetensors``.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Storage
from pipeline.store.record import VideoRecord
from schemas.index import FORMAT_VERSION
from schemas.tokens import ALIGNMENT_BYTES

SHARD_FOLDER = "shards"
SHARD_SUFFIX = ".safetensors"
HEADER_BYTES = 4096
"""Headers are padded with spaces to a multiple of this."""


def shard_file(name: str) -> str:
    """Where the shard called ``name``, a sha256 digest, stands in its cache."""
    return f"{SHARD_FOLDER}/{name}{SHARD_SUFFIX}"


def shard_sizes(storage: Storage) -> dict[str, int]:
    """Bytes of each shard of a cache, by name."""
    return {
        file.name.removesuffix(SHARD_SUFFIX): file.num_bytes
        for file in storage.files(SHARD_FOLDER)
        if file.name.endswith(SHARD_SUFFIX) and file.is_regular
    }


@dataclass(frozen=True, slots=True)
class PlacedShard:
    """A shard on disk: its name, and where each record begins, in bytes from the file's start."""

    name: str
    offsets: tuple[int, ...]


def write_shard(storage: Storage, records: Sequence[VideoRecord]) -> PlacedShard:
    """Write ``records`` to one shard, durable under its final name.

    Records equal in key and content are stored once. The name is a digest of the content, so the
    same records always give the same file; on an object store, where a shard that is being swept
    cannot be put back, a random number is added and no name is ever used twice.

    Args:
        storage: where the cache lies.
        records: at least one.

    Raises:
        CacheError: the shard cannot be written; nothing is left behind.
    """
    distinct = {_identity(record): record for record in records}
    names = _tensor_prefixes(list(distinct))
    header, starts = _header(list(distinct.values()), names)
    salt = b"" if storage.can_rename else uuid.uuid4().bytes
    name = _content_digest(list(distinct.values()), names, salt)
    storage.replace(shard_file(name), _file_chunks(header, list(distinct.values())))
    places = dict(zip(distinct, starts, strict=True))
    offsets = tuple(len(header) + places[_identity(record)] for record in records)
    return PlacedShard(name=name, offsets=offsets)


def _identity(record: VideoRecord) -> tuple[str, bytes]:
    return record.key, record.head


def _tensor_prefixes(identities: Sequence[tuple[str, bytes]]) -> list[str]:
    """The key of each record; a key seen before with other bytes gets ``.2``, ``.3``."""
    seen: dict[str, int] = {}
    prefixes = []
    for key, _ in identities:
        seen[key] = seen.get(key, 0) + 1
        prefixes.append(key if seen[key] == 1 else f"{key}.{seen[key]}")
    return prefixes


def _header(records: Sequence[VideoRecord], names: Sequence[str]) -> tuple[bytes, list[int]]:
    """The padded safetensors header, and each record's start counted from the header's end."""
    entries: dict[str, Any] = {"__metadata__": {"tokenreel_format": str(FORMAT_VERSION)}}
    starts: list[int] = []
    position = 0
    for record, name in zip(records, names, strict=True):
        gap = -position % ALIGNMENT_BYTES
        if gap:
            entries[f"{name}/gap"] = _entry("U8", (gap,), position, position + gap)
        starts.append(position + gap)
        for spec in record.layout:
            begin = starts[-1] + spec.offset
            entries[f"{name}/{spec.name}"] = _entry(
                spec.dtype, spec.shape, begin, begin + spec.num_bytes
            )
        position = starts[-1] + record.layout.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % HEADER_BYTES)
    return len(text).to_bytes(8, "little") + text, starts


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _content_digest(records: Sequence[VideoRecord], names: Sequence[str], salt: bytes) -> str:
    """sha256 over names and heads; a head holds the digest of every feature row."""
    digest = hashlib.sha256(salt)
    for record, name in zip(records, names, strict=True):
        for part in (name.encode(), record.head):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _file_chunks(header: bytes, records: Sequence[VideoRecord]) -> Iterator[bytes | memoryview]:
    yield header
    position = 0
    for record in records:
        gap = -position % ALIGNMENT_BYTES
        yield bytes(gap)
        yield from record.chunks()
        position += gap + record.layout.num_bytes
