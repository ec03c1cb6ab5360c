"""How many stored rows a budget or a threshold asks for."""

import math

import numpy as np

from pipeline.store.head import Head
from schemas.errors import BudgetError
from schemas.fusion import METHODS, FusionConfig, budget_tokens
from schemas.index import IndexRow

_NUMBERS = (int, float, np.integer, np.floating)


def count_rows(
    row: IndexRow, fusion: FusionConfig, *, budget: float | int | None, threshold: float | None
) -> int:
    """Rows to read, a prefix of the stored ones: all of them when nothing is asked.

    0 where a threshold is asked: the scores decide, see ``count_rows_below``.

    Raises:
        BudgetError: the stored order cannot serve this; the message says what it can.
        ConfigError: a budget out of range.
    """
    if budget is not None and threshold is not None:
        raise BudgetError(
            f"video {row.video_id!r}: budget={budget!r} and threshold={threshold!r} are two ways "
            "to say how much to load; give one"
        )
    if threshold is not None:
        return 0
    num_rows = row.tokens_after or 0
    if budget is None:
        return num_rows
    if not row.nested:
        raise BudgetError(
            f"video {row.video_id!r}: rows of fusion method {fusion.method!r} are in grid order, "
            "and no part of them is a smaller budget. Load all of it, or build with one of: "
            f"{_names('nested')}."
        )
    return min(budget_tokens(budget, row.grid.num_tokens), num_rows)


def count_rows_below(head: Head, row: IndexRow, fusion: FusionConfig, threshold: float) -> int:
    """Rows that the method keeps at ``threshold``, at least 1.

    Raises:
        BudgetError: the stored order cannot serve this; the message says what it can.
    """
    _check_threshold(head, row, fusion, threshold)
    anchor = -1 if row.anchor_frame is None else row.anchor_frame
    is_anchor = head.grid_index // row.grid.tokens_per_frame == anchor
    kept = is_anchor | (head.score <= np.float32(threshold))
    count = int(np.count_nonzero(kept))
    if not kept[:count].all():
        raise BudgetError(
            f"video {row.video_id!r}: rows do not ascend in score, so a threshold is no prefix "
            "of them. Encode the video again."
        )
    return max(1, count)


def _check_threshold(head: Head, row: IndexRow, fusion: FusionConfig, threshold: float) -> None:
    if not fusion.abilities.uses_threshold or not row.nested:
        raise BudgetError(
            f"video {row.video_id!r}: rows of fusion method {fusion.method!r} are not stored in "
            "the order of a threshold. Load all of it, or build with one of: "
            f"{_names('nested', 'uses_threshold')}."
        )
    is_number = isinstance(threshold, _NUMBERS) and not isinstance(threshold, bool)
    if not is_number or math.isnan(threshold):
        raise BudgetError(
            f"video {row.video_id!r}: threshold={threshold!r} is not a number; give a cosine, "
            f"such as {fusion.fuses_above}"
        )
    if fusion.budget is None:
        if threshold > fusion.fuses_above:
            raise BudgetError(
                f"video {row.video_id!r}: threshold={threshold!r} needs tokens that were fused; "
                f"this cache was built with {fusion.fuses_above}. Ask for at most that, or build "
                "with a greater one."
            )
        return
    last = float(head.score[-1])
    if head.num_rows < row.grid.num_tokens and np.float32(threshold) >= head.score[-1]:
        raise BudgetError(
            f"video {row.video_id!r}: threshold={threshold!r} needs tokens beyond the budget "
            f"{fusion.budget!r} of this cache; its last stored token has score {last:.6f}. "
            "Ask for less than that, or build with a greater budget."
        )


def _names(*abilities: str) -> str:
    """Names of the methods that have all of these abilities."""
    methods = METHODS.values()
    return ", ".join(m.name for m in methods if all(getattr(m, each) for each in abilities))
