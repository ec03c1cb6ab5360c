"""The loader: one cache folder, opened for reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Location, Storage, open_storage
from pipeline.store.index import Index
from pipeline.store.manifest import read_manifest
from pipeline.store.memory import RowMemory, byte_view, rows_of, torch_dtype
from pipeline.store.query import query_table
from pipeline.store.reader import open_video
from pipeline.store.selection import count_rows, count_rows_below
from pipeline.store.video import CachedVideo, assemble_video
from schemas.errors import IndexCorruptError, VideoNotCachedError
from schemas.index import IndexRow
from schemas.manifest import Manifest

if TYPE_CHECKING:
    import torch

__all__ = ["CachedVideo", "TokenCache", "open_cache"]


def open_cache(location: Location) -> TokenCache:
    """Open the cache at ``location``, as it is now; later commits need another open.

    Args:
        location: a folder, or ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

    Raises:
        ConfigError: a URL of another kind.
        CacheNotFoundError: there is no cache.
        FormatVersionError: it has a format version this reader does not know.
        IndexCorruptError: its manifest or an index fragment cannot be read.
    """
    storage = open_storage(location)
    manifest = read_manifest(storage)
    return TokenCache(storage, manifest, manifest.fingerprint, Index.read(storage), RowMemory())


@dataclass(frozen=True, slots=True, eq=False)
class TokenCache:
    """The videos of one cache. ``len``, ``in`` and ``ids`` speak of loadable videos."""

    storage: Storage
    manifest: Manifest
    fingerprint: str
    _index: Index
    _memory: RowMemory

    def __repr__(self) -> str:
        counts = f"videos={len(self)}, failed={len(self.failed())}"
        return f"TokenCache({self.storage.location!r}, {counts})"

    def __len__(self) -> int:
        return int(pc.sum(self._is_ok()).as_py() or 0)

    def __contains__(self, video_id: object) -> bool:
        if not isinstance(video_id, str):
            return False
        position = self._index.position(video_id)
        return position is not None and self.index["status"][position].as_py() == "ok"

    def ids(self) -> Iterator[str]:
        """Ids of the loadable videos, sorted."""
        for chunk in self.index["video_id"].filter(self._is_ok()).chunks:
            yield from chunk.to_pylist()

    @property
    def index(self) -> pa.Table:
        """One row per video, ordered by ``video_id``, failures included."""
        return self._index.table

    def failed(self) -> pa.Table:
        """The rows of videos that have no tokens: ``error_kind`` and ``error_message`` say why."""
        return self.index.filter(pc.invert(self._is_ok()))

    def row(self, video_id: str) -> IndexRow:
        """All that is known about one video, failed or not.

        Raises:
            VideoNotCachedError: no such video; near ids are suggested.
            CacheCorruptError: the row contradicts itself.
        """
        return self._index.row(video_id)

    def query(self, sql: str, *, columns: str = "*") -> pa.Table:
        """Ask the index in SQL.

        Args:
            sql: a condition such as ``"keep_ratio < 0.4 AND duration_seconds > 60"``, or a full
                SELECT over the table ``index``.

            columns: what is selected when ``sql`` is a condition.

        Raises:
            QueryError: what DuckDB objects to, in one line.
        """
        return query_table(self.index, sql, columns=columns)

    def load(
        self,
        video_id: str,
        *,
        budget: float | int | None = None,
        threshold: float | None = None,
        device: str | torch.device = "cpu",
        out: torch.Tensor | None = None,
    ) -> CachedVideo:
        """Read one video; with a budget or threshold fewer bytes are read, nothing is re-encoded.

        Every byte that is read is verified.

        Args:
            video_id: as in ``ids()``.
            budget: most tokens to load: an int, or a float in (0, 1], a fraction of the video's
                tokens before fusion.
            threshold: keep what TTF keeps at this threshold, at most the one of the build.
            device: where the tensors go.
            out: a contiguous CPU tensor of at least N rows that receives the features, to be
                used for one video after another; ``features`` is then a view of it.

        Raises:
            VideoNotCachedError: no such video, or it failed; near ids or the reason are given.
            BudgetError: the stored order cannot serve this budget or threshold.
            ConfigError: a budget out of range, or an ``out`` that does not fit.
            CacheCorruptError: what is on disk is not what was committed; the class says how.
        """
        row = self._loadable(video_id)
        fusion = self.manifest.fusion
        num_rows = count_rows(row, fusion, budget=budget, threshold=threshold)
        with open_video(
            self.storage, row, fingerprint=self.fingerprint, num_rows=num_rows
        ) as reader:
            if threshold is not None:
                num_rows = count_rows_below(reader.head, row, fusion, threshold)
            reader.expect_rows(num_rows)
            dtype = torch_dtype(str(row.dtype))
            width = reader.row_bytes // dtype.itemsize
            if out is None:
                features = self._memory.empty_rows(num_rows, width, dtype)
            else:
                features = rows_of(out, num_rows, width, dtype)
            order = reader.read_rows(num_rows, byte_view(features))
        video = assemble_video(row, reader.head, features, order, bytes_read=reader.bytes_read)
        return video if str(device) == "cpu" else video.to(device)

    def _loadable(self, video_id: str) -> IndexRow:
        row = self._index.row(video_id)
        if row.status != "ok":
            raise VideoNotCachedError(
                f"video {video_id!r} is in the index as {row.status} "
                f"({row.error_kind}: {row.error_message}). "
                "Mend the file and run the build with --retry-failed."
            )
        if row.next_position is None:
            raise IndexCorruptError(f"video {video_id!r}: committed row lacks next_position")
        return row

    def _is_ok(self) -> pa.ChunkedArray:
        return pc.equal(self.index["status"], "ok")
