"""The verbs that make caches; heavy imports live inside them."""

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from jobs.options import build_options, resolve_config
from jobs.render import render_table
from schemas.config_file import format_config


@click.command()
@build_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    corpus: tuple[str, ...],
    location: str,
    config_file: Path | None,
    limit: int | None,
    retry_failed: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Show what a build would do.

    No video is opened whose size and time are known. With --model the settings are those of a
    build, the checkpoint's own included, and it is said where each comes from.

    \b
    Example:
      tokenreel plan videos/ --out cache/ --model Qwen/Qwen3-VL-2B-Instruct
    """
    from jobs.build import plan_build, settle_config
    from jobs.summary import passed_over_lines

    config = settle_config(resolve_config(config_file, flags))
    planned = plan_build(corpus, location, config, retry_failed=retry_failed, limit=limit)
    counts = {
        "videos": planned.num_videos,
        "done": planned.num_done,
        "failed_before": planned.num_failed_before,
        "to_do": len(planned.todo),
        "to_do_bytes": planned.todo_bytes,
    }
    if as_json:
        import dataclasses

        about = {"passed_over": planned.passed_over, "config": dataclasses.asdict(config)}
        click.echo(json.dumps({**counts, **about}, indent=2))
        return
    click.echo(render_table([{"what": name, "number": value} for name, value in counts.items()]))
    for line in passed_over_lines(planned):
        click.echo(line)
    click.echo(format_config(config))


@click.command()
@build_options
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stderr, the summary as JSON on stdout."
)
def build(
    corpus: tuple[str, ...],
    location: str,
    config_file: Path | None,
    limit: int | None,
    retry_failed: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Cache the videos that are not cached yet.

    CORPUS is any number of folders, files, globs, manifests (.csv, .jsonl, .parquet with
    video_id and uri) and lists of paths (- for standard input, @list.txt). The same command
    resumes a build that was stopped.

    \b
    Example:
      tokenreel build videos/ --out cache/ --model Qwen/Qwen3-VL-2B-Instruct --threshold 0.7
    """
    config = resolve_config(config_file, flags)
    if not config.encoder.model:
        raise click.UsageError("Missing option '--model' (or encoder.model in the --config file).")
    from jobs.build import build as run_build
    from jobs.summary import summary_json, summary_lines

    with redirect_stdout(io.StringIO()):  # where Ray would tell of workers that died
        summary = run_build(
            corpus,
            location,
            config,
            retry_failed=retry_failed,
            limit=limit,
            progress_style="json" if as_json else "auto",
        )
    if as_json:
        click.echo(json.dumps(summary_json(summary, location)))
    else:
        for line in summary_lines(summary, location):
            click.echo(line, err=True)
    sys.exit(summary.exit_code)


@click.command()
@click.argument("cluster_address")
@build_options
@click.option("--no-wait", is_flag=True, help="Print the job's id on stdout and do not follow it.")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stderr, the summary as JSON on stdout."
)
def submit(
    cluster_address: str,
    corpus: tuple[str, ...],
    location: str,
    config_file: Path | None,
    limit: int | None,
    retry_failed: bool,
    no_wait: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run a build as a job of a Ray cluster.

    The job is followed to its exit code.

    CLUSTER_ADDRESS is its dashboard, such as http://head:8265, or auto. The source travels with
    the job: the cluster needs the dependencies only. CORPUS, --out and a --model directory are
    paths that all its nodes see; --config is a file of this machine. Ctrl-C leaves the job running.

    \b
    Example:
      tokenreel submit http://head:8265 /data/videos --out /data/cache --model /data/model
    """
    if flags["runner"] == "local":
        raise click.UsageError("A job runs on its cluster: leave --runner out, or use build.")
    if "-" in corpus:
        raise click.UsageError("A job has no standard input: write the paths to @list.txt.")
    if flags["address"] is not None:
        raise click.UsageError("CLUSTER_ADDRESS names the cluster: leave --address out.")
    config = resolve_config(config_file, {**flags, "runner": "ray"})
    if not config.encoder.model:
        raise click.UsageError("Missing option '--model' (or encoder.model in the --config file).")
    from jobs.follow import find_summary
    from jobs.submit import submit as submit_build

    job = submit_build(
        cluster_address,
        corpus,
        location,
        config,
        retry_failed=retry_failed,
        limit=limit,
        as_json=as_json,
    )
    if no_wait:
        click.echo(job.job_id)
        return

    def show(line: str) -> None:
        summary = find_summary(line) if as_json else None
        click.echo(summary or line, err=summary is None)

    try:
        click.echo(f"job {job.job_id}", err=True)
        code = job.follow(show)
    except KeyboardInterrupt:
        click.echo(f"the job goes on; {job.next_steps}", err=True)
        code = 130
    sys.exit(code)


for option in submit.params:
    if isinstance(option, click.Option) and option.name in ("runner", "address"):
        option.hidden = True  # refused with the reason


@click.command()
@click.option(
    "--out", "root", type=click.Path(path_type=Path), default=Path("demo"), show_default=True
)
def demo(root: Path) -> None:
    """See all of it work, in a minute.

    Renders videos, builds a cache with a small trained model, queries it and asks it.

    \b
    Example:
      tokenreel demo --out demo/
    """
    from jobs.demo import run_demo

    for line in run_demo(root):
        click.echo(line)
