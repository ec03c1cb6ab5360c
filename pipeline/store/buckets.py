"""Bucket fragments: the rows of one 256th of the videos, and a directory to find one by.

Before the Parquet footer, where other readers do not look, stand the same rows a second time, in
blocks so small that a look-up unpacks one in a tenth of a millisecond; Parquet decodes a whole row
group, and each of its columns costs as much as such a block.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from pipeline.storage import Storage
from pipeline.store.fragment import fragment_file, pack_table, read_fragment
from pipeline.store.fragment_checks import checked_columns, unreadable
from schemas.errors import CacheError

BLOCK_ROWS = 128
"""Rows of one block. Fewer make the directory longer, more take longer to unpack."""

MAX_BLOCK_BYTES = 2**27
"""A block that unpacks to more is refused; where rows are that large there is no directory."""

_MAGIC = b"TRBUCKET"
_TRAILER_BYTES = 8 + 8 + len(_MAGIC)
_FOOTER_END_BYTES = 8
_CODEC = "zstd"

_DAMAGE = (
    *(pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError),
    *(AttributeError, IndexError, UnicodeError, RecursionError),
)
"""What reading a damaged or hostile file may raise."""


def pack_bucket(table: pa.Table, *, block_rows: int = BLOCK_ROWS) -> memoryview:
    """Rows of one bucket, distinct and by ``video_id``, as the bytes of a bucket fragment."""
    parquet = bytes(pack_table(table, for_scans=True))
    footer_bytes = int.from_bytes(parquet[-_FOOTER_END_BYTES:-4], "little")
    begin = len(parquet) - _FOOTER_END_BYTES - footer_bytes
    blocks = [
        table.slice(first, block_rows).combine_chunks().to_batches()[0].serialize()
        for first in range(0, table.num_rows, block_rows)
    ]
    if max((block.size for block in blocks), default=0) > MAX_BLOCK_BYTES:
        return memoryview(parquet)
    codec = pa.Codec(_CODEC, compression_level=1)
    packed = [codec.compress(block, asbytes=True) for block in blocks]
    entries, position = [], begin
    for number, (block, data) in enumerate(zip(blocks, packed, strict=True)):
        first = number * block_rows
        first_id = table["video_id"][first].as_py()
        num_rows = min(block_rows, table.num_rows - first)
        digest = xxh3_64_intdigest(data)
        entries.append([first_id, num_rows, position, len(data), block.size, digest])
        position += len(data)
    schema = base64.b64encode(table.schema.serialize()).decode()
    body = json.dumps({"schema": schema, "blocks": entries}).encode()
    trailer = xxh3_64_intdigest(body).to_bytes(8, "little") + len(body).to_bytes(8, "little")
    return memoryview(b"".join([parquet[:begin], *packed, body, trailer, _MAGIC, parquet[begin:]]))


@dataclass(frozen=True, slots=True)
class _Block:
    """An entry of the directory: first id, rows, where they lie, bytes unpacked, and a digest."""

    first_id: str
    num_rows: int
    position: int
    num_bytes: int
    unpacked_bytes: int
    digest: int

    def __post_init__(self) -> None:
        numbers = (self.num_rows, self.position, self.num_bytes, self.unpacked_bytes, self.digest)
        if not isinstance(self.first_id, str) or not all(type(n) is int for n in numbers):
            raise TypeError(f"a block is described by {self.first_id!r} and {numbers}")
        if min(numbers) < 0 or not self.num_rows or self.unpacked_bytes > MAX_BLOCK_BYTES:
            raise ValueError(f"a block is described by the numbers {numbers}")


class BucketFile:
    """One bucket fragment, open for look-ups; threads may share it.

    Without a directory, as another program may have written it, it is read whole at first use.

    Raises:
        FileNotFoundError: it is gone.
        IndexCorruptError: it cannot be read.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._where = storage.where(fragment_file(name))
        self._whole: pa.Table | None = None
        self._first_ids: list[str] = []
        self._blocks: list[list[Any]] = []
        self._schema: pa.Schema | None = None
        try:
            self._file = storage.open_input(fragment_file(name))
            self._read_directory()
        except (FileNotFoundError, CacheError):
            raise
        except _DAMAGE as error:
            raise unreadable(self._where, error) from error

    def find(self, video_id: str) -> pa.Table:
        """The rows of ``video_id``, with all columns; usually one, or none.

        Raises:
            FileNotFoundError: it is gone.
            IndexCorruptError: what is read for this is damaged.
        """
        if self._schema is None:
            table = self._read_whole()
            return table.filter(pc.equal(table["video_id"], video_id))
        number = max(0, bisect_right(self._first_ids, video_id) - 1)
        table = self._read_block(number)
        place = pc.index(table["video_id"], video_id).as_py()
        return checked_columns(self._where, table.slice(max(0, place), 1 if place >= 0 else 0))

    def check(self) -> None:
        """See that look-ups find what Parquet readers do; raises as ``find``."""
        if self._schema is None:
            return
        tables = [self._read_block(number) for number in range(len(self._blocks))]
        rows = checked_columns(self._where, pa.concat_tables([self._schema.empty_table(), *tables]))
        if not rows.equals(read_fragment(self._storage, self._name)):
            raise unreadable(self._where, ValueError("its directory holds other rows"))

    @property
    def empty(self) -> pa.Table:
        """No row, with the columns of this file; raises as ``find``."""
        if self._schema is None:
            return self._read_whole().slice(0, 0)
        return checked_columns(self._where, self._schema.empty_table())

    def _read_whole(self) -> pa.Table:
        if self._whole is None:
            self._whole = read_fragment(self._storage, self._name)
        return self._whole

    def _read_block(self, number: int) -> pa.Table:
        try:
            block = _Block(*self._blocks[number])
            data = self._file.read_at(block.num_bytes, block.position)
            if xxh3_64_intdigest(data) != block.digest:
                raise ValueError(f"the digest of block {number} does not match")
            unpacked = pa.Codec(_CODEC).decompress(data, block.unpacked_bytes)
            batch = pa.ipc.read_record_batch(unpacked, self._schema)
            batch.validate(full=True)
            self._check_order(number, block.num_rows, batch["video_id"])
        except _DAMAGE as error:
            raise unreadable(self._where, error) from error
        return pa.Table.from_batches([batch])

    def _check_order(self, number: int, num_rows: int, ids: pa.StringArray) -> None:
        """See that a block holds the ids that the directory says, in order."""
        follows = self._first_ids[number + 1 : number + 2]
        if (
            len(ids) != num_rows
            or ids[0].as_py() != self._first_ids[number]
            or (follows and ids[-1].as_py() >= follows[0])
            or pc.less(ids[:-1], ids[1:]).false_count
        ):
            raise ValueError(f"the ids of block {number} are not those of the directory")

    def _read_directory(self) -> None:
        size = self._file.size()
        end = self._file.read_at(_FOOTER_END_BYTES, max(0, size - _FOOTER_END_BYTES))
        footer_begin = size - _FOOTER_END_BYTES - int.from_bytes(end[:4], "little")
        place = footer_begin - _TRAILER_BYTES
        if place < 0:
            return
        trailer = self._file.read_at(_TRAILER_BYTES, place)
        if trailer[16:] != _MAGIC:
            return
        length = int.from_bytes(trailer[8:16], "little")
        if length > place:
            raise ValueError(f"a directory of {length} bytes before byte {place}")
        body = self._file.read_at(length, place - length)
        if xxh3_64_intdigest(body).to_bytes(8, "little") != trailer[:8]:
            raise ValueError("the digest of its directory does not match")
        self._take_directory(json.loads(body), place - length)

    def _take_directory(self, directory: Any, end: int) -> None:
        """Take over what the directory says; its blocks lie side by side before byte ``end``."""
        blocks = list(directory["blocks"])
        first_ids = [block[0] for block in blocks]
        begins = [block[2] for block in blocks]
        ends = [block[2] + block[3] for block in blocks]
        if (
            not all(isinstance(video_id, str) for video_id in first_ids)
            or any(one >= other for one, other in pairwise(first_ids))
            or begins[1:] != ends[:-1]
            or ends[-1:] not in ([], [end])
        ):
            raise ValueError("its directory describes blocks that do not follow each other")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(directory["schema"])))
        checked_columns(self._where, schema.empty_table())
        if blocks:
            self._first_ids, self._blocks, self._schema = first_ids, blocks, schema
