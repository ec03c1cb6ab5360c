"""How many stored rows a budget or a threshold asks for."""

import math

import numpy as np

from pipeline.fusion.methods import METHODS
from pipeline.store.head import Head
from schemas.config import FusionConfig, budget_tokens
from schemas.errors import BudgetError
from schemas.index import IndexRow


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
            "and no part of them is a smaller budget. Load all of it, or build with ttf."
        )
    return min(budget_tokens(budget, row.grid.num_tokens), num_rows)


def count_rows_below(head: Head, row: IndexRow, fusion: FusionConfig, threshold: float) -> int:
    """Rows that TTF keeps at ``threshold``, at least 1.

    Raises:
        BudgetError: the stored order cannot serve this; the message says what it can.
    """
    _check_threshold(head, row, fusion, threshold)
    is_anchor = head.grid_index // row.grid.tokens_per_frame == row.anchor_frame
    kept = is_anchor | (head.score <= np.float32(threshold))
    count = int(np.count_nonzero(kept))
    if not kept[:count].all():
        raise BudgetError(
            f"video {row.video_id!r}: rows do not ascend in score, so a threshold is no prefix "
            "of them. Encode the video again."
        )
    return max(1, count)


def _check_threshold(head: Head, row: IndexRow, fusion: FusionConfig, threshold: float) -> None:
    if not METHODS[fusion.method].uses_threshold or not row.nested:
        raise BudgetError(
            f"video {row.video_id!r}: a threshold is a cosine of fusion method 'ttf', and this "
            f"cache was built with {fusion.method!r}. Load all of it, or build with ttf."
        )
    if math.isnan(threshold):
        raise BudgetError(f"video {row.video_id!r}: threshold={threshold!r} is not a number")
    if fusion.budget is None:
        if threshold > fusion.threshold:
            raise BudgetError(
                f"video {row.video_id!r}: threshold={threshold!r} needs tokens that were fused; "
                f"this cache was built with {fusion.threshold}. Ask for at most that, or build "
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
