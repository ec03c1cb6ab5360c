"""Questions about one cached video, answered by the checkpoint that belongs to the cache."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.cache import open_cache
from pipeline.encoders.checkpoint import find_checkpoint
from pipeline.encoders.language_model import load_language_model, load_matching_tokenizer
from pipeline.session import Session
from pipeline.storage import Location


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it took."""

    question: str
    text: str
    num_tokens: int
    bytes_read: int
    seconds: float

    @property
    def note(self) -> str:
        """What a person wants to know besides the answer."""
        return (
            f"  ({self.num_tokens} visual tokens, {self.bytes_read / 1e6:.1f} MB read, "
            f"{self.seconds:.2f} s)"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "question": self.question,
            "answer": self.text,
            "num_tokens": self.num_tokens,
            "bytes_read": self.bytes_read,
            "seconds": round(self.seconds, 4),
        }


def ask_cache(
    location: Location,
    video_id: str,
    questions: Sequence[str],
    *,
    model: str | None = None,
    budget: float | int | None = None,
    threshold: float | None = None,
    device: str = "auto",
    max_new_tokens: int = 64,
    system: str | None = None,
) -> Iterator[Answer]:
    """Answer questions one after the other; the video's KV cache is computed once.

    Args:
        location: of the cache, as ``open_cache`` takes it.
        video_id: as in the index.
        questions: asked in this order.
        model: checkpoint; the one named by the cache's manifest by default.
        budget: tokens to load at most, a count or a fraction.
        threshold: load what a lower threshold would have kept.
        device: "auto" takes CUDA when there is any.
        max_new_tokens: of each answer.
        system: system text before the video.

    Raises:
        CacheError: the video cannot be loaded.
        ModelError: the checkpoint cannot be loaded, or is not the one that made the cache.
    """
    cache = open_cache(location)
    video = cache.load(video_id, budget=budget, threshold=threshold)
    encoder = cache.manifest.encoder
    checkpoint = find_checkpoint(cache.manifest, model, where=cache.storage.location)
    directory = str(checkpoint.directory)
    language_model = load_language_model(directory, encoder, device=device)
    tokenizer = load_matching_tokenizer(directory, encoder)
    session = Session(language_model, tokenizer, video)
    for question in questions:
        started = time.perf_counter()
        text = session.ask(question, system=system, max_new_tokens=max_new_tokens)
        seconds = time.perf_counter() - started
        yield Answer(question, text, video.num_tokens, video.bytes_read, seconds)
