"""The command line: every verb is a thin skin on a library function.

stdout is data, stderr is talk. Exit codes: 0 done, 1 user error, 2 usage, 3 finished with failures
inside the budget (or damage found), 4 failure budget exceeded. Heavy imports live inside verbs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click

from jobs.options import NumberOrFraction, build_options, format_option, resolve_config
from jobs.render import render_rows, render_table
from schemas.config_file import format_config
from schemas.errors import TokenreelError

QUERY_COLUMNS = (
    "video_id, status, duration_seconds, fps, num_frames, tokens_before, tokens_after, "
    "round(keep_ratio, 4) AS keep_ratio, error_kind"
)
"""What ``query`` shows for a bare condition; a full SELECT chooses its own."""


class TokenreelGroup(click.Group):
    """Turns expected errors into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TokenreelError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted; what was committed stays, the same command resumes", err=True)
            sys.exit(130)


@click.group(cls=TokenreelGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tokenreel", message="%(version)s")
def cli() -> None:
    """Encode every video once; answer every later question from the cache.

    \b
    Example:
      tokenreel build videos/ --out cache/ --model Qwen/Qwen3-VL-2B-Instruct
      tokenreel ask cache/ holiday/beach.mp4 "Who falls into the water?"
    """


@cli.command()
@build_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    corpus: tuple[str, ...],
    root: Path,
    config_file: Path | None,
    limit: int | None,
    retry_failed: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Show what a build would do; opens no video whose size and time are known.

    \b
    Example:
      tokenreel plan videos/ --out cache/ --model Qwen/Qwen3-VL-2B-Instruct
    """
    from jobs.build import plan_build

    config = resolve_config(config_file, flags)
    planned = plan_build(corpus, root, config, retry_failed=retry_failed, limit=limit)
    tasks = planned.tasks(config.store.max_videos_per_task, workers=config.run.workers)
    counts = {
        "videos": planned.num_videos,
        "done": planned.num_done,
        "failed_before": planned.num_failed_before,
        "to_do": len(planned.todo),
        "to_do_bytes": planned.todo_bytes,
        "tasks": len(tasks),
    }
    if as_json:
        import dataclasses

        click.echo(json.dumps({**counts, "config": dataclasses.asdict(config)}, indent=2))
        return
    click.echo(render_table([{"what": name, "number": value} for name, value in counts.items()]))
    click.echo(format_config(config))


@cli.command()
@build_options
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stderr, the summary as JSON on stdout."
)
def build(
    corpus: tuple[str, ...],
    root: Path,
    config_file: Path | None,
    limit: int | None,
    retry_failed: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Cache every video of the corpus that is not cached yet.

    CORPUS is any number of folders, files, globs and manifests (.csv, .jsonl, .parquet with
    video_id and uri). The same command resumes a build that was stopped.

    \b
    Example:
      tokenreel build videos/ --out cache/ --model Qwen/Qwen3-VL-2B-Instruct --threshold 0.7
    """
    config = resolve_config(config_file, flags)
    if not config.encoder.model:
        raise click.UsageError("Missing option '--model' (or encoder.model in the --config file).")
    from jobs.build import build as run_build
    from jobs.summary import summary_json, summary_lines

    summary = run_build(
        corpus,
        root,
        config,
        retry_failed=retry_failed,
        limit=limit,
        progress_style="json" if as_json else "auto",
    )
    if as_json:
        click.echo(json.dumps(summary_json(summary, root)))
    else:
        for line in summary_lines(summary, root):
            click.echo(line, err=True)
    sys.exit(summary.exit_code)


@cli.command()
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--failed", is_flag=True, help="List what failed and why.")
@format_option("table")
def status(cache: Path, failed: bool, style: str) -> None:
    """Count what is cached and what failed; works while a build runs.

    \b
    Example:
      tokenreel status cache/ --failed
    """
    from pipeline.report.status import cache_status, failed_videos

    rows = failed_videos(cache) if failed else cache_status(cache)
    _echo(render_rows(rows, style))


@cli.command()
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("sql")
@format_option("table")
def query(cache: Path, sql: str, style: str) -> None:
    """Ask the index in SQL: a condition, or a whole SELECT over the view "index".

    \b
    Example:
      tokenreel query cache/ "keep_ratio < 0.4 AND duration_seconds > 60"
      tokenreel query cache/ "SELECT codec, avg(keep_ratio) FROM index GROUP BY codec"
    """
    from pipeline.cache import open_cache

    found = open_cache(cache).query(sql, columns=QUERY_COLUMNS)
    _echo(render_rows(found.to_pylist(), style, columns=found.column_names))


@cli.command()
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("video_id")
@click.option("--map", "with_map", is_flag=True, help="Draw which tokens of each frame are kept.")
def show(cache: Path, video_id: str, with_map: bool) -> None:
    """Show one video: its index row and how many tokens each frame keeps.

    \b
    Example:
      tokenreel show cache/ holiday/beach.mp4 --map
    """
    from pipeline.report.show import describe_video

    click.echo(describe_video(cache, video_id, with_map=with_map))


@cli.command()
@click.argument("cache", type=click.Path(path_type=Path))
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
    cache: Path,
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
    """Answer questions about one cached video; the video is neither decoded nor encoded.

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


@cli.command()
@click.argument("cache", type=click.Path(path_type=Path))
@format_option("table")
def verify(cache: Path, style: str) -> None:
    """Read every byte of a cache and check it; lists what is damaged.

    \b
    Example:
      tokenreel verify cache/
    """
    from pipeline.report.status import verify_rows

    rows = list(verify_rows(cache))
    if rows:
        click.echo(render_rows(rows, style))
    damaged = sum(row["is_damage"] for row in rows)
    click.echo(f"{damaged} damaged, {len(rows) - damaged} stray files", err=True)
    sys.exit(3 if damaged else 0)


@cli.command()
@click.option(
    "--out", "root", type=click.Path(path_type=Path), default=Path("demo"), show_default=True
)
def demo(root: Path) -> None:
    """Render videos, build a cache with a tiny model, query it and ask it, in a minute.

    \b
    Example:
      tokenreel demo --out demo/
    """
    from jobs.demo import run_demo

    for line in run_demo(root):
        click.echo(line)


def _echo(text: str) -> None:
    """Print data; nothing at all when there is none."""
    if text:
        click.echo(text)


def main() -> None:
    """Entry point of ``tokenreel``."""
    cli(prog_name="tokenreel")
