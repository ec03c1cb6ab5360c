"""The verbs that take over what other programs encoded; heavy imports live inside them."""

import json
import sys
from pathlib import Path

import click

from jobs.options import NumberOrFraction, require_window
from schemas.config import BuildConfig
from schemas.fusion import METHODS

MODEL_TYPES = ("qwen2_vl", "llava_onevision")
"""As in ``pipeline.sttm_prompt``, which imports torch."""

NEWLINES = ("grid", "frame", "one_token", "no_token")


@click.command("import-sttm")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--out", "location", required=True, metavar="CACHE", help="The cache: a folder or a URL."
)
@click.option(
    "--model-type",
    required=True,
    type=click.Choice(MODEL_TYPES),
    help="Family of the model; it decides the positions.",
)
@click.option(
    "--encoder-name",
    required=True,
    help="Your name for the checkpoint that made the features; it stands for its weights.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of that checkpoint: its config.json tells the placeholder's id.",
)
@click.option(
    "--newline", type=click.Choice(NEWLINES), help="llava_onevision: its mm_newline_position."
)
@click.option("--fps", type=float, help="Sampled per second.  [default: as DIR is named]")
@click.option("--max-frames", type=int, help="Sampled at most.  [default: as DIR is named]")
@click.option(
    "--fusion",
    type=click.Choice(tuple(METHODS)),
    default="none",
    show_default=True,
    help="As in build; with none the cache holds every token and no budget can be asked of it.",
)
@click.option(
    "--threshold", type=float, help="Cosine above which a token is fused.  [default: the method's]"
)
@click.option("--window", type=int, help="Side of the searched square: 1, 3, 5 or 7.  [default: 3]")
@click.option("--budget", type=NumberOrFraction(), help="Keep exactly N tokens, or a fraction.")
@click.option("--limit", type=click.IntRange(min=1), help="Import at most N videos.")
@click.option("--retry-failed", is_flag=True, help="Try videos again that failed before.")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stderr, the summary as JSON on stdout."
)
def import_sttm(
    folder: Path,
    location: str,
    model_type: str,
    encoder_name: str,
    model: Path | None,
    newline: str | None,
    fps: float | None,
    max_frames: int | None,
    fusion: str,
    threshold: float | None,
    window: int | None,
    budget: float | int | None,
    limit: int | None,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Cache features that STTM extracted.

    DIR holds features/<video id>.pt and metadata/<video id>.pkl. Nothing is decoded or encoded, and
    no code in the files is run. The same command resumes an import that was stopped.

    \b
    Example:
      tokenreel import-sttm qwen2-vl-7b-instruct/F-256_fps-2 --out cache/ --model-type qwen2_vl \\
        --encoder-name Qwen/Qwen2-VL-7B-Instruct --fusion ttf
    """
    from jobs.import_sttm import import_sttm as run_import
    from jobs.sttm_source import SttmSource, resolve_sampling
    from jobs.summary import summary_json, summary_lines
    from pipeline.sttm_prompt import prompt_rule

    config = BuildConfig().override(
        "fusion", method=fusion, threshold=threshold, window=window, budget=budget
    )
    require_window(config.fusion.abilities, window)
    source = SttmSource(
        folder=folder,
        encoder_name=encoder_name,
        rule=prompt_rule(model_type, newline=newline, directory=model),
        sampling=resolve_sampling(folder, fps, max_frames),
    )
    summary = run_import(
        source,
        location,
        config.fusion,
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
