"""The verbs that look at caches; heavy imports live inside them."""

import json
import shlex
import sys

import click

from jobs.options import CacheLocation, NumberOrFraction, format_option
from jobs.render import render_rows, rows_of

QUERY_COLUMNS = (
    "video_id, status, duration_seconds, fps, num_frames, tokens_before, tokens_after, "
    "round(keep_ratio, 4) AS keep_ratio, error_kind"
)
"""What ``query`` shows for conditions and clauses; a full query chooses its own."""


@click.command()
@click.argument("cache", type=CacheLocation())
@click.option("--failed", is_flag=True, help="List what failed and why.")
@format_option("table")
def status(cache: str, failed: bool, style: str) -> None:
    """Count what is cached and what failed.

    Works while a build runs.

    \b
    Example:
      tokenreel status cache/ --failed
    """
    from pipeline.report.status import cache_status, failed_videos

    rows = failed_videos(cache) if failed else cache_status(cache)
    _echo(render_rows(rows, style))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("cache", type=CacheLocation())
@click.argument("sql")
@format_option("table")
def query(cache: str, sql: str, style: str) -> None:
    """Ask the index in SQL.

    SQL is a condition, clauses such as ORDER BY and LIMIT, or a whole query of the view "index"
    as DuckDB knows it: SELECT, FROM, PIVOT, DESCRIBE, SUMMARIZE ...

    \b
    Example:
      tokenreel query cache/ "keep_ratio < 0.4 AND duration_seconds > 60"
      tokenreel query cache/ "ORDER BY duration_seconds DESC LIMIT 3"
      tokenreel query cache/ "SELECT codec, avg(keep_ratio) FROM index GROUP BY codec"
    """
    from pipeline.cache import open_cache

    found = open_cache(cache).query(sql, columns=QUERY_COLUMNS)
    _echo(render_rows(rows_of(found), style, columns=found.column_names))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("cache", type=CacheLocation())
@click.argument("video_id")
@click.option("--map", "with_map", is_flag=True, help="Draw which tokens of each frame are kept.")
@click.option(
    "--coverage",
    "with_coverage",
    is_flag=True,
    help="Encode the video again and show what fusion lost: cosines of all its tokens with what "
    "is kept, by motion.",
)
@click.option("--model", help="Checkpoint for --coverage.  [default: the one that made the cache]")
@click.option("--device", default="auto", show_default=True, help="For --coverage.")
def show(
    cache: str, video_id: str, with_map: bool, with_coverage: bool, model: str | None, device: str
) -> None:
    """Show one video and what its frames keep.

    \b
    Example:
      tokenreel show cache/ holiday/beach.mp4 --map --coverage
    """
    from pipeline.report.show import describe_video

    click.echo(describe_video(cache, video_id, with_map=with_map))
    if with_coverage:
        from pipeline.cache import open_cache
        from pipeline.report.coverage import coverage_lines, measure_video

        quality = measure_video(open_cache(cache), video_id, model=model, device=device)
        click.echo("\n" + "\n".join(coverage_lines(quality)))


@click.command()
@click.argument("cache", type=CacheLocation())
@click.argument("video_id")
@click.argument("questions", nargs=-1, required=True)
@click.option("--model", help="Checkpoint.  [default: the one the cache was built with]")
@click.option("--budget", type=NumberOrFraction(), help="Load at most N tokens, or a fraction.")
@click.option("--threshold", type=float, help="Load what this lower threshold would have kept.")
@click.option("--device", default="auto", show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--system", help="System text before the video.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per answer.")
def ask(
    cache: str,
    video_id: str,
    questions: tuple[str, ...],
    model: str | None,
    budget: int | float | None,
    threshold: float | None,
    device: str,
    max_new_tokens: int,
    system: str | None,
    as_json: bool,
) -> None:
    """Answer questions about one cached video.

    The video is neither decoded nor encoded.

    \b
    Example:
      tokenreel ask cache/ beach.mp4 "Who falls?" "What colour is the ball?" --budget 0.25
    """
    from jobs.ask import ask_cache

    for answer in ask_cache(
        cache,
        video_id,
        questions,
        model=model,
        budget=budget,
        threshold=threshold,
        device=device,
        max_new_tokens=max_new_tokens,
        system=system,
    ):
        click.echo(json.dumps(answer.to_json()) if as_json else answer.text)
        click.echo(answer.note, err=True)


@click.command()
@click.argument("cache", type=CacheLocation())
@click.option(
    "--discard",
    is_flag=True,
    help="Take what is damaged out of service: the next build encodes just that again.",
)
@format_option("table")
def verify(cache: str, discard: bool, style: str) -> None:
    """Check every byte; list what is damaged.

    Exits with 3 when damage is found and stays in service.

    \b
    Example:
      tokenreel verify cache/
      tokenreel verify cache/ --discard
    """
    from pipeline.report.status import again_lines, verify_rows
    from pipeline.storage import open_storage
    from pipeline.store.discard import discard_damage
    from pipeline.store.verify import verify_cache

    storage = open_storage(cache)
    findings = list(verify_cache(storage))
    if findings:
        click.echo(render_rows(list(verify_rows(findings)), style))
    damaged = [finding for finding in findings if finding.is_damage]
    click.echo(f"{len(damaged)} damaged, {len(findings) - len(damaged)} stray files", err=True)
    if not damaged:
        return
    if discard:
        discarded = discard_damage(storage, damaged)
        for line in discarded.lines():
            click.echo(line, err=True)
        click.echo(f"next: tokenreel build CORPUS --out {shlex.quote(cache)}", err=True)
        sys.exit(3 if discarded.by_hand else 0)
    for line in again_lines(damaged):
        click.echo(line, err=True)
    click.echo(f"next: tokenreel verify {shlex.quote(cache)} --discard", err=True)
    sys.exit(3)


@click.command()
@click.argument("cache", type=CacheLocation())
@click.option(
    "--grace-seconds",
    type=click.FloatRange(min=0),
    default=3600,
    show_default=True,
    help="Leave files alone that are younger; 0 only while nobody writes or reads.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def compact(cache: str, grace_seconds: float, dry_run: bool, as_json: bool) -> None:
    """Merge the index and sweep debris.

    Many fragments become few; shards and temporary files that no row refers to are removed.

    Builds and readers may go on meanwhile; no answer changes.

    \b
    Example:
      tokenreel compact cache/ --dry-run
    """
    import dataclasses

    from pipeline.storage import open_storage
    from pipeline.store.compact import compact_cache

    report = compact_cache(
        open_storage(cache),
        grace_seconds=grace_seconds,
        dry_run=dry_run,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
        return
    for line in report.lines():
        click.echo(line, err=True)


def _echo(text: str) -> None:
    """Print data; nothing at all when there is none."""
    if text:
        click.echo(text)
