"""What a compaction did, as numbers and as lines for a person."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did, or with ``is_dry_run`` would do.

    Of ``fragments_before``, ``fragments_replaced`` gave way to fewer. ``rows`` is one per video;
    ``rows_dropped`` lost against another row of their video. Shards are swept when no row refers
    to them; ``shards_waiting`` are too young for that. ``bytes_freed`` counts shards and
    temporary files. ``foreign_files`` were left alone.
    """

    fragments_before: int
    fragments_replaced: int
    fragments_after: int
    rows: int
    rows_dropped: int
    shards_swept: int
    shards_waiting: int
    temporary_files_swept: int
    bytes_freed: int
    foreign_files: int
    is_dry_run: bool

    def lines(self) -> list[str]:
        """The report for a person."""
        dry = self.is_dry_run
        now = f"{'would be' if dry else 'now'} {self.fragments_after}"
        lines = [
            f"fragments: {self.fragments_before}, "
            f"{now if self.fragments_replaced else 'already compact'}",
            f"rows: {self.rows}, {'would drop' if dry else 'dropped'}: {self.rows_dropped}",
            f"{'would sweep' if dry else 'swept'}: shards {self.shards_swept}, "
            f"temporary files {self.temporary_files_swept}, {self.bytes_freed / 1e6:.1f} MB",
        ]
        if self.shards_waiting:
            lines.append(f"no row refers to them, but too young yet: shards {self.shards_waiting}")
        if self.foreign_files:
            lines.append(f"not tokenreel's, left alone: files {self.foreign_files}")
        return ["dry run, nothing was changed", *lines] if dry else lines
