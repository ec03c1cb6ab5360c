"""The verb that tells fusion methods apart."""

from collections.abc import Iterator
from typing import Any

import click

from jobs.options import format_option
from jobs.render import render_rows
from schemas.fusion import METHODS, FusionMethod


@click.command()
@format_option("table")
def methods(style: str) -> None:
    """List the fusion methods and what each can do.

    \b
    rows       copies: tokens as they were encoded; means: averages of what they stand for
    budget     keeps an exact number of tokens when asked
    nested     a cache built with it serves any smaller budget
    bounded    every fused token has a cosine above the threshold with the one that stands for it
    streaming  without a budget, no later frame changes what an earlier one keeps

    \b
    Example:
      tokenreel methods --format json
    """
    click.echo(render_rows(list(method_rows()), style))


def method_rows() -> Iterator[dict[str, Any]]:
    """One row per method, the default first."""
    for method in METHODS.values():
        yield {
            "method": method.name,
            "default": _default(method),
            "rows": "means" if method.averages else "copies",
            "budget": _yes(method.budgeted),
            "nested": _yes(method.nested),
            "bounded": _yes(method.bounded),
            "streaming": _yes(method.streaming),
            "source": method.source,
            "summary": method.summary,
        }


def _default(method: FusionMethod) -> str:
    """What decides when neither a threshold nor a budget is given."""
    if method.uses_threshold:
        return f"cosine {method.threshold:.2f}"
    if method.budget is not None:
        return f"{method.budget:.0%} kept"
    return "fixed share" if method.budgeted else "all kept"


def _yes(ability: bool) -> str:
    return "yes" if ability else "no"
