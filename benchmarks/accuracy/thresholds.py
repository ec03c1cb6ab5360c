"""TTF by threshold, window and motion: `python benchmarks/accuracy/thresholds.py [--model DIR]`.

Prints Markdown: tokens kept and accuracy for thresholds 0.5 to 0.99, windows 1, 3 and 5 and each
motion level, and how the best cosines of tokens are spread.
"""

from collections.abc import Iterator

import torch
from answering import BLIND
from corpus import Corpus
from methods import FULL
from script import Results, Rows, run
from settings import Setting
from tables import MEAN_OF_KINDS, find, markdown, percent

from examples.toyworld.scene import LEVELS
from pipeline.fusion import plan_fusion
from schemas.fusion import FusionConfig

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
WINDOWS = (1, 3, 5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KEPT_ALL = 1.0
"""A threshold that nothing is above: all tokens stay, with their best cosines as scores."""


def setting_of(threshold: float, window: int) -> Setting:
    fusion = FusionConfig(method="ttf", threshold=threshold, window=window)
    return Setting(f"ttf {threshold} window {window}", fusion)


def all_settings(_: Corpus) -> list[Setting]:
    return [FULL, *(setting_of(t, w) for w in WINDOWS for t in THRESHOLDS)]


def main_table(rows: Rows) -> str:
    """Per line a window and threshold: tokens kept and accuracy, over all and by level."""
    lines = []
    for setting in [
        FULL.name,
        *(setting_of(t, w).name for w in WINDOWS for t in THRESHOLDS),
        BLIND,
    ]:
        mean = find(rows, setting, *MEAN_OF_KINDS)
        cells = [setting, f"{100 * mean.keep_ratio:.1f}", percent(mean.accuracy)]
        for level in LEVELS:
            row = find(rows, setting, "level", level)
            cells.append(f"{100 * row.keep_ratio:.1f} / {100 * row.accuracy.value:.1f}")
        lines.append(cells)
    return markdown(
        ["", "kept %", "mean of kinds %", *(f"{v}: kept / right %" for v in LEVELS)], lines
    )


def cosine_table(corpus: Corpus) -> str:
    """Quantiles of the best cosine of each token to the anchor's window, by level."""
    levels = {question.video_id: str(question.columns["level"]) for question in corpus.questions}
    lines = []
    for window in WINDOWS:
        fusion = FusionConfig(method="ttf", threshold=KEPT_ALL, window=window)
        found: dict[str, list[torch.Tensor]] = {level: [] for level in LEVELS}
        for video_id, level in levels.items():
            video = corpus.whole.load(video_id)
            score = plan_fusion(video.embeddings, video.grid, fusion).score
            found[level].append(score[score.isfinite()])
        for level in LEVELS:
            spread = torch.cat(found[level]).quantile(torch.tensor(QUANTILES)).tolist()
            lines.append([f"window {window}, {level}", *(f"{value:.3f}" for value in spread)])
    return markdown(["best cosine", *(f"{q:.0%}" for q in QUANTILES)], lines)


def tables(results: Results) -> Iterator[str]:
    yield main_table(results.rows)
    yield cosine_table(results.corpus)


if __name__ == "__main__":
    run(__doc__, "thresholds", settings=all_settings, tables=tables)
