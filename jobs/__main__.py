"""``python -m jobs``: the command line without installing anything."""

from jobs.cli import main

main()
