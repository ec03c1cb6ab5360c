"""Write docs/cli.md from the commands' own help: ``python docs/make_cli_reference.py``."""

from pathlib import Path

import click

from jobs.cli import cli

INTRODUCTION = """# Command line

Written by `python docs/make_cli_reference.py`; a test compares it with the commands.

stdout is data, stderr is talk. Exit codes: 0 done, 1 user error (one line), 2 usage, 3 finished
with failures inside the budget or damage found, 4 failure budget exceeded, 130 interrupted.
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name in ("", *cli.commands):
        command = cli.commands[name] if name else cli
        title = f"tokenreel {name}".strip()
        context = click.Context(command, info_name=title, terminal_width=96, max_content_width=96)
        parts.append(f"## {title}\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")
