"""Counts over a cache's index, without torch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.cache import open_cache
from pipeline.storage import Location
from pipeline.store.verify import VerifyFinding

MAX_LISTED = 10

FAILED_SQL = """
    SELECT video_id, status, error_kind, attempts, error_message
    FROM index WHERE status <> 'ok' ORDER BY error_kind, video_id
"""

STATUS_SQL = """
    SELECT status, error_kind, count(*) AS videos,
           round(sum(duration_seconds), 1) AS seconds, sum(tokens_before)::BIGINT AS tokens_before,
           sum(tokens_after)::BIGINT AS tokens_after,
           round(sum(tokens_after) / sum(tokens_before), 4) AS keep_ratio,
           sum(num_bytes)::BIGINT AS bytes
    FROM index GROUP BY status, error_kind ORDER BY status = 'ok' DESC, videos DESC, error_kind
"""


def cache_status(location: Location) -> list[dict[str, Any]]:
    """Videos, seconds, tokens and bytes by status and kind of failure."""
    rows: list[dict[str, Any]] = open_cache(location).query(STATUS_SQL).to_pylist()
    return rows


def failed_videos(location: Location) -> list[dict[str, Any]]:
    """Every video without tokens, and why."""
    rows: list[dict[str, Any]] = open_cache(location).query(FAILED_SQL).to_pylist()
    return rows


def verify_rows(findings: Iterable[VerifyFinding]) -> Iterator[dict[str, Any]]:
    """Findings of ``verify_cache`` as plain rows, one for each video to be encoded again.

    The error comes last, where a table shows it whole.
    """
    for finding in findings:
        for video_id in finding.videos or (None,):
            yield {
                "finding": finding.kind,
                "video_id": video_id,
                "path": finding.where,
                "is_damage": finding.is_damage,
                "error": finding.error,
            }


def again_lines(findings: Sequence[VerifyFinding]) -> list[str]:
    """Which videos must be encoded again, for a person."""
    again = list(dict.fromkeys(video_id for finding in findings for video_id in finding.videos))
    num_fragments = sum(finding.kind == "damaged_fragment" for finding in findings)
    lines = [f"encode again: {video_id}" for video_id in again[:MAX_LISTED]]
    if len(again) > MAX_LISTED:
        lines.append(f"encode again: {len(again) - MAX_LISTED} more, listed above")
    if num_fragments:
        lines.append(f"encode again: what {num_fragments} unreadable index fragments listed")
    return lines
