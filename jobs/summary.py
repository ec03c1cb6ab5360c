"""How a finished build is told: to a person in lines, to a program as JSON."""

import shlex
from typing import Any

from jobs.build import BuildSummary
from jobs.plan import BuildPlan
from pipeline.corpus_names import told_by_suffix

MAX_LISTED = 10


def summary_lines(summary: BuildSummary, location: str) -> list[str]:
    """The end of a build for a person, with the next command to run."""
    tally, plan = summary.tally, summary.plan
    lines = [
        f"  failed {row.video_id}: [{row.error_kind}] {row.error_message}"
        for row in tally.first_failures[:MAX_LISTED]
    ]
    if tally.failed > MAX_LISTED:
        lines.append(f"  ... and {tally.failed - MAX_LISTED} more failures")
    parts = [f"done {tally.done}/{tally.total} videos in {tally.seconds:.1f} s"]
    if tally.done:
        parts.append(
            f"kept {tally.keep_ratio:.1%} of {tally.tokens_before} tokens "
            f"({tally.num_bytes / 1e6:.1f} MB)"
        )
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if plan.num_done:
        parts.append(f"{plan.num_done} were done before")
    if plan.num_failed_before:
        parts.append(f"{plan.num_failed_before} failed before (--retry-failed tries them again)")
    lines.append("  ".join(parts))
    lines += passed_over_lines(plan)
    if summary.stopped_by:
        lines.append(f"stopped: {summary.stopped_by}")
    lines.append(f"next: {next_command(summary, location)}")
    return lines


def passed_over_lines(plan: BuildPlan) -> list[str]:
    """Which files of the corpus's folders were not taken for videos, if any."""
    if not plan.passed_over:
        return []
    return [f"passed over: {told_by_suffix(plan.passed_over)}; name a file to take it anyway"]


def next_command(summary: BuildSummary, location: str) -> str:
    """The command a user most likely wants now."""
    folder = shlex.quote(location)
    if summary.tally.failed or summary.plan.num_failed_before:
        return f"tokenreel status {folder} --failed"
    return f'tokenreel query {folder} "keep_ratio < 0.5"'


def summary_json(summary: BuildSummary, location: str) -> dict[str, Any]:
    """The end of a build for a program."""
    tally = summary.tally
    return {
        "event": "summary",
        "cache": location,
        "videos": summary.plan.num_videos,
        "done": tally.done,
        "done_before": summary.plan.num_done,
        "failed": tally.failed,
        "failed_before": summary.plan.num_failed_before,
        "failed_by_kind": dict(tally.failed_by_kind),
        "tokens_before": tally.tokens_before,
        "tokens_after": tally.tokens_after,
        "bytes": tally.num_bytes,
        "seconds": round(tally.seconds, 3),
        "passed_over": dict(summary.plan.passed_over),
        "stopped_by": summary.stopped_by,
        "exit_code": summary.exit_code,
    }
