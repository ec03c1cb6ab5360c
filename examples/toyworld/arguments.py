"""Arguments that several commands of this package take."""

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number with a lower bound."""

    def convert(text: str) -> int:
        expected = f"{text!r}; expected a whole number of at least {least}"
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(expected) from error
        if value < least:
            raise argparse.ArgumentTypeError(expected)
        return value

    return convert
