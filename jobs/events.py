"""What a worker says about its videos while it runs."""

from dataclasses import dataclass

from schemas.index import IndexRow


@dataclass(frozen=True, slots=True)
class Assembled:
    """Videos encoded and fused, or failed; all they need now is their commit."""

    video_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """Rows that readers can see; ``write_seconds`` is how long the commit took."""

    rows: tuple[IndexRow, ...]
    write_seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker died, ``reason`` says how; what it held is done again.

    ``video_ids`` are those of its videos that were assembled and not yet committed.
    """

    video_ids: tuple[str, ...]
    reason: str


Event = Assembled | Committed | Lost
