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
    """Assembled videos whose worker died before their commit; they are done again."""

    video_ids: tuple[str, ...]


Event = Assembled | Committed | Lost
