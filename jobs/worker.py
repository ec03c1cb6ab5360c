"""A worker: one encoder with its decode children, turning tasks of videos into commits.

The same class runs in process and inside a Ray actor.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from jobs.failures import created_now, failed_row
from jobs.plan import Task
from pipeline.assemble import assemble_pending
from pipeline.decode import FrameReader, decoder_versions
from pipeline.encoders import VisualTokens, load_encoder
from pipeline.keys import content_digest, feature_key
from pipeline.preprocess import resize_frames, target_size
from pipeline.store.commit import PendingVideo, commit_videos
from pipeline.store.manifest import read_manifest
from schemas.config import BuildConfig
from schemas.errors import CacheMismatchError, ModelError
from schemas.index import IndexRow
from schemas.manifest import DecoderIdentity, Manifest
from schemas.video import SampledFrames, VideoProbe, VideoRef

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ReadVideo:
    """A video read, resized and hashed, waiting for the encoder; or the error that stopped it."""

    ref: VideoRef
    attempts: int
    newer_than_ns: int
    sampled: SampledFrames | None
    content_sha256: str | None
    decode_seconds: float
    error: Exception | None = None


class Worker:
    """Processes tasks one after the other; decoding runs ahead of encoding."""

    def __init__(self, config: BuildConfig, root: str | Path, *, fingerprint: str = "") -> None:
        self._config = config
        self._root = Path(root)
        self._encoder = load_encoder(config.encoder, config.preprocess)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.manifest = self._make_manifest()
        self._is_root_checked = False
        if fingerprint and fingerprint != self.manifest.fingerprint:
            raise CacheMismatchError(
                f"worker {self._name} would build fingerprint {self.manifest.fingerprint}, the "
                f"first worker {fingerprint}: this node has other decoder versions or another "
                "checkpoint; install the same on every node"
            )
        self._readers = [
            FrameReader(config.decode, config.sampling) for _ in range(config.decode.children)
        ]
        self._idle: SimpleQueue[FrameReader] = SimpleQueue()
        for reader in self._readers:
            self._idle.put(reader)
        self._threads = ThreadPoolExecutor(len(self._readers), thread_name_prefix="read")

    def _make_manifest(self) -> Manifest:
        encoder = self._encoder
        return Manifest(
            encoder=encoder.identity,
            sampling=self._config.sampling,
            preprocess=encoder.preprocess,
            decode=DecoderIdentity(
                self._config.decode.decoder, decoder_versions(self._config.decode.decoder)
            ),
            fusion=self._config.fusion,
            about={
                "model": self._config.encoder.model,
                "revision": encoder.revision,
                "device": str(encoder.device),
                "torch": torch.__version__,
                "transformers": version("transformers"),
            },
        )

    def close(self) -> None:
        """End the decode children at once, also in the middle of a video."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers:
            reader.interrupt()
        self._threads.shutdown()
        for reader in self._readers:
            reader.close()

    def run_task(self, task: Task) -> Iterator[list[IndexRow]]:
        """Process a task; yields the rows of each commit as it is made.

        A video that cannot be processed becomes a failed row; nothing else of the task is lost.

        Raises:
            CacheError: the cache folder cannot be written, or is not the driver's.
            ModelError: the accelerator failed for good.
        """
        self._check_root()
        entries: list[PendingVideo | IndexRow] = []
        last_commit = time.monotonic()
        try:
            for group in self._packs(self._read_ahead(task)):
                entries += self._encode_group(group)
                if self._is_time_to_commit(entries, last_commit):
                    yield commit_videos(self._root, entries)
                    entries, last_commit = [], time.monotonic()
            if entries:
                yield commit_videos(self._root, entries)
        except (KeyboardInterrupt, ModelError):
            commit_videos(self._root, entries)
            raise

    def _is_time_to_commit(
        self, entries: Sequence[PendingVideo | IndexRow], last_commit: float
    ) -> bool:
        pending = [entry for entry in entries if isinstance(entry, PendingVideo)]
        num_bytes = sum(entry.record.layout.num_bytes for entry in pending)
        waited = time.monotonic() - last_commit
        return num_bytes >= self._config.store.shard_bytes or (
            bool(entries) and waited >= self._config.store.commit_seconds
        )

    def _check_root(self) -> None:
        """Raise unless the cache begun by the driver is what this process sees at the root."""
        if self._is_root_checked:
            return
        read_manifest(self._root).require_same(self.manifest, where=str(self._root))
        self._is_root_checked = True

    def _read_ahead(self, task: Task) -> Iterator[ReadVideo]:
        """Videos in task order, while the decode children work on the next ones."""
        waiting: deque[Future[ReadVideo]] = deque()
        for video in zip(task.videos, task.attempts, task.newer_than_ns, strict=True):
            waiting.append(self._threads.submit(self._read, *video))
            if len(waiting) > len(self._readers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read(self, ref: VideoRef, tried: int, newer_than_ns: int) -> ReadVideo:
        video = ReadVideo(ref, tried + 1, newer_than_ns, None, None, 0.0)
        started = time.perf_counter()
        reader = self._idle.get()
        digest = None
        try:
            if Path(ref.path).is_file():
                digest = content_digest(ref.path)
            sampled = reader.read(ref.path, resize=self._resize)
        except Exception as error:  # whatever is wrong with one video becomes its failed row
            return replace(video, content_sha256=digest, error=error)
        finally:
            self._idle.put(reader)
        seconds = time.perf_counter() - started
        return replace(video, sampled=sampled, content_sha256=digest, decode_seconds=seconds)

    def _resize(self, frames: Frames, probe: VideoProbe, num_frames: int) -> Frames:
        size = target_size(
            num_frames,
            probe.height,
            probe.width,
            patches=self._encoder.patches,
            settings=self._encoder.preprocess,
        )
        return resize_frames(frames, size)

    def _packs(self, videos: Iterator[ReadVideo]) -> Iterator[list[ReadVideo]]:
        """Group videos so that the short ones share encoder calls, none waiting too long."""
        group: list[ReadVideo] = []
        patches, started = 0, time.monotonic()
        for video in videos:
            group.append(video)
            patches += self._num_patches(video)
            is_late = time.monotonic() - started >= self._config.store.commit_seconds
            if is_late or patches >= self._config.encoder.max_patches_per_call:
                yield group
                group, patches, started = [], 0, time.monotonic()
        if group:
            yield group

    def _num_patches(self, video: ReadVideo) -> int:
        if video.sampled is None:
            return 0
        frames = video.sampled.frames
        grid = self._encoder.patches.token_grid(*frames.shape[:3])
        return grid.num_tokens * self._encoder.patches.patches_per_token

    def _encode_group(self, group: Sequence[ReadVideo]) -> list[PendingVideo | IndexRow]:
        readable = [video for video in group if video.sampled is not None]
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            tokens = self._encode(readable)
        except torch.AcceleratorError as error:
            raise ModelError(f"the accelerator failed and takes no more work: {error}") from error
        except Exception as error:  # one video of a pack must not fail its neighbours
            failure = error.with_traceback(None)  # a traceback holds the failed call's tensors
        if failure is not None:
            if len(readable) > 1:
                return [entry for video in group for entry in self._encode_group([video])]
            return [self._failed(video, video.error or failure) for video in group]
        share = (time.perf_counter() - started) / max(1, len(readable))
        encoded = dict(zip(map(id, readable), tokens, strict=True))
        return [self._finish(video, encoded.get(id(video)), share) for video in group]

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        frames = [torch.from_numpy(video.sampled.frames) for video in videos if video.sampled]
        return self._encoder.encode(frames) if frames else []

    def _finish(
        self, video: ReadVideo, tokens: VisualTokens | None, encode_seconds: float
    ) -> PendingVideo | IndexRow:
        if tokens is None or video.sampled is None or video.content_sha256 is None:
            return self._failed(video, video.error or RuntimeError("no tokens were made"))
        ref, fingerprint = video.ref, self.manifest.fingerprint
        try:
            return assemble_pending(
                tokens,
                video.sampled,
                key=feature_key(video.content_sha256, fingerprint, video.sampled),
                fusion=self._config.fusion,
                patches=self._encoder.patches,
                tokenizer=self._encoder.tokenizer,
                fields={
                    "video_id": ref.video_id,
                    "path": ref.printable_path,
                    "fingerprint": fingerprint,
                    "size_bytes": ref.size_bytes,
                    "modified_ns": ref.modified_ns,
                    "created_ns": created_now(video.newer_than_ns),
                    "writer": self._name,
                    "attempts": video.attempts,
                    "content_sha256": video.content_sha256,
                    "decode_seconds": video.decode_seconds,
                    "encode_seconds": encode_seconds,
                    "extra": ref.extra,
                },
            )
        except Exception as error:  # whatever is wrong with one video becomes its failed row
            return self._failed(video, error)

    def _failed(self, video: ReadVideo, error: Exception) -> IndexRow:
        return failed_row(
            video.ref,
            error,
            fingerprint=self.manifest.fingerprint,
            attempts=video.attempts,
            writer=self._name,
            content_sha256=video.content_sha256,
            newer_than_ns=video.newer_than_ns,
        )
