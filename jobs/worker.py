"""A worker: one encoder, decode children ahead of it, fusion and commits behind it.

The same class runs in process and inside a Ray actor. The stages meet in one inbox:

    read-ahead threads -> inbox -> encoder (whoever calls run) -> assembler -> committer
                            ^------------------ events --------------'-----------'
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from queue import Empty, SimpleQueue

import torch

from jobs.assembler import Assembler, EncodedPack
from jobs.committer import Committer, Entry, entry_video_id
from jobs.events import Assembled, Committed, Event
from jobs.plan import Task
from jobs.read_ahead import Frames, ReadAhead, ReadVideo
from pipeline.decode import decoder_versions
from pipeline.encoders import VisualTokens, load_encoder
from pipeline.encoders.transfer import page_locked
from pipeline.storage import Location, open_storage
from pipeline.store.manifest import read_manifest
from schemas.config import BuildConfig
from schemas.errors import CacheMismatchError, ModelError
from schemas.manifest import DecoderIdentity, Manifest, StoreIdentity
from schemas.video import VideoProbe


class Worker:
    """Processes the videos it is given; decoding, encoding, fusing and writing overlap."""

    def __init__(self, config: BuildConfig, location: Location, *, fingerprint: str = "") -> None:
        self._storage = open_storage(location)
        self._encoder = load_encoder(config.encoder, config.preprocess, config.sampling)
        self._config = replace(config, sampling=self._encoder.settings.sampling)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.manifest = self._make_manifest()
        if fingerprint and fingerprint != self.manifest.fingerprint:
            raise CacheMismatchError(
                f"worker {self._name} would build fingerprint {self.manifest.fingerprint}, the "
                f"first worker {fingerprint}: this node has other decoder versions or another "
                "checkpoint; install the same on every node"
            )
        self._inbox: SimpleQueue[ReadVideo | Event | Exception | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_unassembled = 0
        self._num_uncommitted = 0
        self._takes_more = True
        self._is_closed = False
        self._read_ahead = ReadAhead(self._config, self._resize, self._take_video)
        self._committer = Committer(self._storage, config.store, self._inbox.put)
        self._assembler = Assembler(
            config.fusion,
            self._encoder,
            encoding=config.store.encoding,
            fingerprint=self.manifest.fingerprint,
            writer=self._name,
            deliver=self._take_entries,
        )

    def _make_manifest(self) -> Manifest:
        encoder = self._encoder
        said = self._config.origins
        origins = {n: said.get(n, origin) for n, origin in encoder.settings.origins.items()}
        return Manifest(
            encoder=encoder.identity,
            sampling=self._config.sampling,
            preprocess=encoder.preprocess,
            decode=DecoderIdentity(
                self._config.decode.decoder, decoder_versions(self._config.decode.decoder)
            ),
            fusion=self._config.fusion,
            store=StoreIdentity(self._config.store.encoding),
            about={
                "model": self._config.encoder.model,
                "revision": encoder.revision,
                "device": str(encoder.device),
                "torch": torch.__version__,
                "transformers": version("transformers"),
                **origins,
            },
        )

    def add(self, tasks: Sequence[Task]) -> None:
        """Give this worker more videos; from any thread, also while it runs."""
        with self._lock:
            self._num_unassembled += len(tasks)
            self._num_uncommitted += len(tasks)
        self._read_ahead.add(tasks)

    def finish(self) -> None:
        """Say that no more videos will come: ``run`` ends once all are committed."""
        self._takes_more = False
        self._inbox.put(None)

    def run(self) -> Iterator[Event]:
        """Process what was added; yields what happens, until all is done after ``finish``.

        A video that cannot be processed becomes a failed row; no other is touched by it.

        Raises:
            CacheError: the cache cannot be written, or is not the driver's.
            ModelError: the accelerator failed for good.
        """
        read_manifest(self._storage).require_same(self.manifest, where=self._storage.location)
        while not self._is_closed and (self._takes_more or self._num_uncommitted):
            pack, events = self._collect()
            for event in events:
                if isinstance(event, Committed):
                    with self._lock:
                        self._num_uncommitted -= len(event.rows)
                yield event
            if pack and not self._is_closed:
                self._assembler.put(self._encode_pack(pack))

    def close(self) -> None:
        """End the decode children at once, commit what is encoded, and end ``run``."""
        self._read_ahead.interrupt()
        self._assembler.close()
        self._committer.close()
        self._read_ahead.close()
        self._is_closed = True
        self._inbox.put(None)

    def _collect(self) -> tuple[list[ReadVideo], list[Event]]:
        """Wait for news; what was read meanwhile, up to one encoder call, and what happened.

        While the encoder is the slower side videos wait and calls are full; while it is the
        faster one it never waits for company.
        """
        pack: list[ReadVideo] = []
        events: list[Event] = []
        num_patches = 0
        message = self._inbox.get()
        while True:
            if isinstance(message, Exception):
                raise message
            if isinstance(message, ReadVideo):
                self._read_ahead.taken(message)
                pack.append(message)
                num_patches += self._num_patches(message)
            elif message is not None:
                events.append(message)
            if num_patches >= self._config.encoder.max_patches_per_call:
                return pack, events
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return pack, events

    def _take_video(self, video: ReadVideo | Exception) -> None:
        if isinstance(video, Exception):
            self._inbox.put(video)
            return
        if video.sampled is not None:
            frames = page_locked(video.sampled.frames, self._encoder.device)
            video = replace(video, sampled=replace(video.sampled, frames=frames))
        self._inbox.put(video)

    def _take_entries(self, entries: Sequence[Entry] | Exception) -> None:
        if isinstance(entries, Exception):
            self._inbox.put(entries)
            return
        with self._lock:
            self._num_unassembled -= len(entries)
            is_last = self._num_unassembled == 0
        self._inbox.put(Assembled(tuple(map(entry_video_id, entries))))
        self._committer.put(entries, is_last=is_last)

    def _resize(self, frames: Frames, probe: VideoProbe, num_frames: int) -> Frames:
        return self._encoder.resize(frames, probe, num_frames)

    def _num_patches(self, video: ReadVideo) -> int:
        if video.sampled is None:
            return 0
        frames = video.sampled.frames
        grid = self._encoder.patches.token_grid(*frames.shape[:3])
        return grid.num_tokens * self._encoder.patches.patches_per_token

    def _encode_pack(self, videos: Sequence[ReadVideo]) -> EncodedPack:
        started = time.perf_counter()
        results = self._encode_apart(videos)
        num_encoded = sum(tokens is not None for _, tokens in results)
        seconds = (time.perf_counter() - started) / max(1, num_encoded)
        return EncodedPack(results, seconds, self._assembler.mark())

    def _encode_apart(
        self, videos: Sequence[ReadVideo]
    ) -> list[tuple[ReadVideo, VisualTokens | None]]:
        """One encoder call for all; when it fails one for each, so that none fails another."""
        readable = [video for video in videos if video.sampled is not None]
        failure: Exception | None = None
        try:
            tokens = dict(zip(map(id, readable), self._encode(readable), strict=True))
        except torch.AcceleratorError as error:
            raise ModelError(f"the accelerator failed and takes no more work: {error}") from error
        except Exception as error:  # whatever is wrong with one video becomes its failed row
            failure = error.with_traceback(None)  # a traceback holds the failed call's tensors
        if failure is None:
            return [(video, tokens.get(id(video))) for video in videos]
        if len(readable) > 1:
            return [result for video in videos for result in self._encode_apart([video])]
        return [(replace(video, error=video.error or failure), None) for video in videos]

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        frames = [torch.from_numpy(video.sampled.frames) for video in videos if video.sampled]
        return self._encoder.encode(frames) if frames else []
