"""Fusing behind the encoder: a thread that turns encoded videos into entries to commit."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Queue

import torch

from jobs.committer import Entry
from jobs.failures import created_now, failed_row
from jobs.read_ahead import ReadVideo
from pipeline.assemble import assemble_pending, encode_pending
from pipeline.encoders import Qwen3VLEncoder, VisualTokens
from pipeline.encoders.transfer import Handover
from pipeline.keys import feature_key
from schemas.errors import ModelError
from schemas.fusion import FusionConfig
from schemas.index import IndexRow

PACKS_WAITING = 2


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPack:
    """Videos that shared encoder calls, with tokens where they could be read and encoded.

    ``encode_seconds`` is each video's share; ``is_complete`` marks, on a GPU, when the tokens are
    there.
    """

    videos: Sequence[tuple[ReadVideo, VisualTokens | None]]
    encode_seconds: float
    is_complete: "torch.cuda.Event | None"


class Assembler:
    """Assembles packs one after the other.

    Args:
        fusion: how redundant tokens are fused.
        encoder: whose tokens they are.
        encoding: how feature rows are stored.
        fingerprint: of the cache's manifest.
        writer: this process's name, for the index.
        deliver: called with the videos and entries of each pack, or with the error that makes
            all further work pointless.
    """

    def __init__(
        self,
        fusion: FusionConfig,
        encoder: Qwen3VLEncoder,
        *,
        encoding: str,
        fingerprint: str,
        writer: str,
        deliver: Callable[[Sequence[Entry] | Exception], None],
    ) -> None:
        self._fusion = fusion
        self._encoder = encoder
        self._handover = Handover(encoder.device)
        self._encoding = encoding
        self._fingerprint = fingerprint
        self._writer = writer
        self._deliver = deliver
        self._inbox: Queue[EncodedPack | None] = Queue(PACKS_WAITING)
        self._thread = threading.Thread(target=self._serve, name="assemble", daemon=True)
        self._thread.start()

    def mark(self) -> "torch.cuda.Event | None":
        """Call on the encoder's thread after a pack: see ``EncodedPack.is_complete``."""
        return self._handover.mark()

    def put(self, pack: EncodedPack) -> None:
        """Hand over a pack; waits while two others wait."""
        self._inbox.put(pack)

    def close(self) -> None:
        """Finish what was handed over and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (pack := self._inbox.get()) is not None:
            try:
                self._deliver(self._entries(pack))
            except Exception as error:  # a thread has nobody to raise to
                self._deliver(error)

    def _entries(self, pack: EncodedPack) -> list[Entry]:
        encoded = [tokens for _, tokens in pack.videos if tokens is not None]
        with self._handover.taking(encoded, pack.is_complete):
            return [self._entry(video, tokens, pack) for video, tokens in pack.videos]

    def _entry(self, video: ReadVideo, tokens: VisualTokens | None, pack: EncodedPack) -> Entry:
        if tokens is None or video.sampled is None or video.content_sha256 is None:
            return self._failed(video, video.error or RuntimeError("no tokens were made"))
        ref = video.ref
        try:
            pending = assemble_pending(
                tokens,
                video.sampled,
                key=feature_key(video.content_sha256, self._fingerprint, video.sampled),
                fusion=self._fusion,
                patches=self._encoder.patches,
                tokenizer=self._encoder.tokenizer,
                fields={
                    "video_id": ref.video_id,
                    "path": ref.printable_path,
                    "fingerprint": self._fingerprint,
                    "size_bytes": ref.size_bytes,
                    "modified_ns": ref.modified_ns,
                    "created_ns": created_now(video.newer_than_ns),
                    "writer": self._writer,
                    "attempts": video.attempts,
                    "content_sha256": video.content_sha256,
                    "decode_seconds": video.decode_seconds,
                    "encode_seconds": pack.encode_seconds,
                    "extra": ref.extra,
                },
            )
            return encode_pending(pending, self._encoding)
        except torch.AcceleratorError as error:
            raise ModelError(f"the accelerator failed and takes no more work: {error}") from error
        except Exception as error:  # whatever is wrong with one video becomes its failed row
            return self._failed(video, error)

    def _failed(self, video: ReadVideo, error: Exception) -> IndexRow:
        return failed_row(
            video.ref,
            error,
            fingerprint=self._fingerprint,
            attempts=video.attempts,
            writer=self._writer,
            content_sha256=video.content_sha256,
            newer_than_ns=video.newer_than_ns,
        )
