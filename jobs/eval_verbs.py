"""The verb that scores answers; heavy imports live inside it."""

import json
from pathlib import Path

import click

from jobs.options import CacheLocation, NumberOrFraction
from jobs.progress import say_line
from jobs.render import render_table
from pipeline.evaluation.layouts import LAYOUTS


@click.command("eval")
@click.argument(
    "questions", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="QUESTIONS..."
)
@click.option("--cache", required=True, type=CacheLocation(), help="A folder or a URL.")
@click.option("--model", help="Checkpoint.  [default: the one the cache was built with]")
@click.option(
    "--budget",
    "budgets",
    type=NumberOrFraction(),
    multiple=True,
    help="A setting: at most N tokens, or a fraction.  Repeatable.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=float,
    multiple=True,
    help="A setting: what this lower threshold would have kept.  Repeatable.",
)
@click.option("--by", multiple=True, help="Break results down by this column.  Repeatable.")
@click.option(
    "--layout",
    type=click.Choice(("auto", *LAYOUTS)),
    default="auto",
    show_default=True,
    help="Whose keys the questions have (docs/evaluation.md).",
)
@click.option("--skip-missing", is_flag=True, help="Leave out questions about videos not cached.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the answers.  [default: beside QUESTIONS, named like it, ending in .eval]",
)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Of a short answer.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Questions asked at once; each holds a copy of the video's KV cache.",
)
@click.option("--system", help="System text before the video.")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stderr, the results as JSON on stdout."
)
def evaluate(
    questions: tuple[Path, ...],
    cache: str,
    model: str | None,
    budgets: tuple[int | float, ...],
    thresholds: tuple[float, ...],
    by: tuple[str, ...],
    layout: str,
    skip_missing: bool,
    out: Path | None,
    device: str,
    max_new_tokens: int,
    batch_size: int,
    system: str | None,
    as_json: bool,
) -> None:
    """Score answers to questions, at several budgets.

    QUESTIONS are JSON lines with video_id, question, answer and maybe options, or the annotations
    of a benchmark. Each budget and threshold is compared with the full cache, question by question;
    intervals are of 95 %, by bootstrap over videos. The same command resumes.

    \b
    Example:
      tokenreel eval questions.jsonl --cache cache/ --budget 0.5 --budget 0.25 --by kind
      tokenreel eval mvbench/json/*.json --cache cache/ --out mvbench.eval --by task
    """
    from jobs.evaluate import evaluate as run_evaluation
    from pipeline.evaluation.answers import Manner

    style = "json" if as_json else "auto"
    report = run_evaluation(
        questions,
        cache,
        model=model,
        budgets=budgets,
        thresholds=thresholds,
        by=by,
        layout=layout,
        skip_missing=skip_missing,
        out=out,
        device=device,
        manner=Manner(system=system, max_new_tokens=max_new_tokens, batch_size=batch_size),
        progress_style=style,
        say=lambda line: say_line(line, style),
    )
    click.echo(json.dumps(report.to_json()) if as_json else render_table(report.table()))
