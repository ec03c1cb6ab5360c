"""The command line: every verb is a thin skin on a library function.

stdout is data, stderr is talk. Exit codes: 0 done, 1 user error, 2 usage, 3 finished with failures
inside the budget (or damage found), 4 failure budget exceeded.
"""

import signal
import sys
from typing import Any

import click

from jobs import build_verbs, cache_verbs, eval_verbs, import_verbs, method_verbs
from schemas.errors import TokenreelError

VERBS = (
    build_verbs.plan,
    build_verbs.build,
    build_verbs.submit,
    method_verbs.methods,
    import_verbs.import_sttm,
    cache_verbs.status,
    cache_verbs.query,
    cache_verbs.show,
    cache_verbs.ask,
    eval_verbs.evaluate,
    cache_verbs.verify,
    cache_verbs.compact,
    build_verbs.demo,
)


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


for verb in VERBS:
    cli.add_command(verb)


def main() -> None:
    """Entry point of ``tokenreel``; being told to terminate is taken like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cli(prog_name="tokenreel")
