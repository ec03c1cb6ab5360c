"""The loader: one cache folder, opened for reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.storage import Location, Storage, open_storage
from pipeline.store.ahead import map_ahead
from pipeline.store.bucket_index import BucketIndex, open_index
from pipeline.store.features import read_features
from pipeline.store.index import Index
from pipeline.store.manifest import read_manifest
from pipeline.store.memory import RowMemory, this_device, wait_for_copies
from pipeline.store.reader import open_video, prefetch_video
from pipeline.store.recent import RecentRows
from pipeline.store.selection import count_rows, count_rows_below
from pipeline.store.video import CachedVideo, assemble_video
from schemas.errors import ConfigError, VideoNotCachedError
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
    index = open_index(storage)
    return TokenCache(storage, manifest, manifest.fingerprint, index, RecentRows(), RowMemory())


@dataclass(frozen=True, slots=True, eq=False)
class TokenCache:
    """The videos of one cache. ``len``, ``in`` and ``ids`` speak of loadable videos."""

    storage: Storage
    manifest: Manifest
    fingerprint: str
    _index: Index | BucketIndex
    _recent: RecentRows
    _memory: RowMemory

    def __repr__(self) -> str:
        return f"TokenCache({self.storage.location!r}, {self._index.summary})"

    def __len__(self) -> int:
        return self._index.counts()[0]

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and self._index.status(video_id) == "ok"

    def ids(self) -> Iterator[str]:
        """Ids of the loadable videos: sorted, or in a large index by bucket and sorted within."""
        return self._index.ids()

    @property
    def index(self) -> pa.Table:
        """One row per video, ordered by ``video_id``, failures included; all of it in memory."""
        return self._index.table

    def failed(self) -> pa.Table:
        """The rows of videos that have no tokens: ``error_kind`` and ``error_message`` say why."""
        return self._index.failed()

    def row(self, video_id: str) -> IndexRow:
        """All that is known about one video, failed or not.

        Raises:
            VideoNotCachedError: no such video; near ids are suggested.
            CacheCorruptError: the row contradicts itself.
        """
        if not isinstance(video_id, str):
            raise VideoNotCachedError(f"no video {video_id!r} in this cache; ids are text")
        return self._recent.get(video_id, self._index.row)

    def query(self, sql: str, *, columns: str = "*") -> pa.Table:
        """Ask the index in SQL.

        Args:
            sql: a condition such as ``"keep_ratio < 0.4 AND duration_seconds > 60"``, clauses
                such as ``"ORDER BY fps LIMIT 3"``, or a full query of the table ``index``.

            columns: what is selected when ``sql`` is no full query.

        Raises:
            QueryError: what DuckDB objects to, in one line.
        """
        return self._index.query(sql, columns=columns)

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
            device: where the tensors go; rows of encoding "fp8" go to a CUDA device as codes.
            out: a contiguous CPU tensor of at least N rows that receives the features, to be
                used for one video after another; ``features`` is then a view of it.

        Raises:
            VideoNotCachedError: no such video, or it failed; near ids or the reason are given.
            BudgetError: the stored order cannot serve this budget or threshold.
            ConfigError: a budget out of range, an ``out`` that does not fit, no such device.
            CacheCorruptError: what is on disk is not what was committed; the class says how.
        """
        if str(device) != "cpu":
            device = this_device(device)
        row = self._loadable(video_id)
        fusion = self.manifest.fusion
        num_rows = count_rows(row, fusion, budget=budget, threshold=threshold)
        with open_video(
            self.storage, row, fingerprint=self.fingerprint, num_rows=num_rows
        ) as reader:
            if threshold is not None:
                num_rows = count_rows_below(reader.head, row, fusion, threshold)
            reader.expect_rows(num_rows)
            features, order = read_features(
                reader, num_rows, memory=self._memory, out=out, device=device
            )
        video = assemble_video(
            row, self.manifest, reader.head, features, order, bytes_read=reader.bytes_read
        )
        if str(device) == "cpu":
            return video
        return video.to(device, non_blocking=out is None and features.is_pinned())

    def stream(
        self,
        video_ids: Iterable[str] | None = None,
        *,
        budget: float | int | None = None,
        threshold: float | None = None,
        device: str | torch.device = "cpu",
        ahead: int | None = None,
    ) -> Iterator[CachedVideo]:
        """Load one video after the other, reading ahead of whoever uses them.

        Args:
            video_ids: in the order wanted; None is all of ``ids()``.
            budget: as for ``load``.
            threshold: as for ``load``.
            device: as for ``load``.
            ahead: videos that are read, or wait in memory, beside the one in use; by default as
                many as are well read at once, 4 from a disk and 16 from an object store.

        Raises:
            TokenreelError: as ``load``, at the turn of the video in question.
        """
        if not (ahead is None or (type(ahead) is int and ahead >= 0)):
            raise ConfigError(f"ahead is {ahead!r}; expected how many videos, 0 or more, or None")
        threads = self.storage.reads_at_once
        load = partial(
            self._load_whole, budget=budget, threshold=threshold, device=this_device(device)
        )
        wanted = self.ids() if video_ids is None else several(video_ids)
        yield from map_ahead(
            load, wanted, threads=threads, ahead=threads if ahead is None else ahead
        )

    def _load_whole(
        self,
        video_id: str,
        *,
        budget: float | int | None,
        threshold: float | None,
        device: str | torch.device,
    ) -> CachedVideo:
        """``load`` for another thread: on a GPU nothing is under way any more."""
        video = self.load(video_id, budget=budget, threshold=threshold, device=device)
        wait_for_copies(device)
        return video

    def load_many(
        self,
        video_ids: Iterable[str],
        *,
        budget: float | int | None = None,
        threshold: float | None = None,
        device: str | torch.device = "cpu",
    ) -> list[CachedVideo]:
        """Load several videos, their reads overlapping; in the order of ``video_ids``.

        Raises:
            TokenreelError: as ``load``, of the first video that fails.
        """
        return list(self.stream(video_ids, budget=budget, threshold=threshold, device=device))

    def prefetch(self, video_ids: Iterable[str], *, budget: float | int | None = None) -> None:
        """Begin to read videos that will be loaded soon with this budget; returns at once.

        Files are read into the kernel's cache; from an object store up to 1 GiB is held until it
        is loaded, and what does not fit is fetched when it is.

        Raises:
            VideoNotCachedError: as ``load``.
            BudgetError: as ``load``.
        """
        for video_id in several(video_ids):
            row = self._loadable(video_id)
            num_rows = count_rows(row, self.manifest.fusion, budget=budget, threshold=None)
            prefetch_video(self.storage, row, fingerprint=self.fingerprint, num_rows=num_rows)

    def _loadable(self, video_id: str) -> IndexRow:
        row = self.row(video_id)
        if row.status != "ok":
            advice = "Mend the file and run the build with --retry-failed."
            if row.status == "damaged":
                advice = "Run the build again: it encodes what is damaged anew."
            raise VideoNotCachedError(
                f"video {video_id!r} is in the index as {row.status} "
                f"({row.error_kind}: {row.error_message}). {advice}"
            )
        return row


def several(video_ids: Iterable[str]) -> Iterable[str]:
    """``video_ids``, unless it is a single id.

    Raises:
        ConfigError: text, whose letters would be taken for ids, or what holds no ids.
    """
    if not isinstance(video_ids, Iterable):
        raise ConfigError(f"video_ids is {video_ids!r}; give a list of ids")
    if isinstance(video_ids, str):
        raise ConfigError(f"video_ids is the text {video_ids!r}; give a list of ids")
    return video_ids
