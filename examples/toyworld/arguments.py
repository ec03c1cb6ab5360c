"""Arguments that several commands of this package take."""

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number with a lower bound."""

    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {least}"
            )
        return int(text)

    return convert
