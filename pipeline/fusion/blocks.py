"""How large products are cut so that every part is computed alike."""

MULTIPLE = 16
"""Sides of a matrix product are filled up to a multiple of this.

Measured with MKL: equal tokens then get equal bits wherever they stand, the rounding error halves,
and it is faster than the odd 9 places of a window (docs/decisions/fusion.md).
"""


def equal_blocks(length: int, limit: int) -> list[slice]:
    """Cover ``range(length)`` with the fewest slices of one size of at most ``limit``.

    The last slice overlaps the one before it: products of one shape round alike.
    """
    count = -(-length // limit)
    size = -(-length // count)
    starts = [min(number * size, length - size) for number in range(count)]
    return [slice(start, start + size) for start in starts]
