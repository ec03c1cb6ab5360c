"""Moving tensors to and from a GPU without making the encoder wait; on a CPU nothing is moved."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encoders.tokens import VisualTokens


def page_locked(frames: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.uint8]:
    """The same frames in memory that a GPU copies from while it computes."""
    if device.type != "cuda":
        return frames
    locked: npt.NDArray[np.uint8] = torch.from_numpy(frames).pin_memory().numpy()
    return locked


class Handover:
    """Lets another thread work on tokens on a stream of its own, beside the encoder's next call."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]

    def mark(self) -> "torch.cuda.Event | None":
        """Call on the encoder's thread: the point from which its results are complete."""
        if not self._is_cuda:
            return None
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return done

    @contextmanager
    def taking(self, tokens: list[VisualTokens], done: "torch.cuda.Event | None") -> Iterator[None]:
        """Work on ``tokens`` inside the block, on the side stream, once ``done`` is reached."""
        if self._stream is None or done is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(done)
            for video in tokens:
                # The allocator must not give this memory to the encoder before we are done.
                video.embeddings.record_stream(self._stream)
                video.deepstack.record_stream(self._stream)
            yield
