"""TTF by threshold, window and motion: `python benchmarks/accuracy/thresholds.py [--model DIR]`.

Prints Markdown: tokens kept and accuracy for thresholds 0.5 to 0.99, windows 1, 3 and 5 and each
motion level, how the best cosines of tokens are spread, and tokens kept at closer thresholds.
"""

from collections.abc import Iterator, Mapping

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
CLOSER = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HIGHEST = 1.0
"""The highest threshold; the scores that tell best cosines are the same at any."""

Cosines = Mapping[tuple[int, str], torch.Tensor]


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


def best_cosines(corpus: Corpus) -> Cosines:
    """Of each token to the anchor's window, by window and level; -inf in the anchor itself."""
    levels = {question.video_id: str(question.columns["level"]) for question in corpus.questions}
    found: dict[tuple[int, str], list[torch.Tensor]] = {
        (window, level): [] for window in WINDOWS for level in LEVELS
    }
    for video_id, level in levels.items():
        video = corpus.whole.load(video_id)
        for window in WINDOWS:
            fusion = FusionConfig(method="ttf", threshold=HIGHEST, window=window)
            score = plan_fusion(video.embeddings, video.grid, fusion).score
            found[window, level].append(score)
    return {key: torch.cat(scores) for key, scores in found.items()}


def cosine_table(cosines: Cosines) -> str:
    """Their quantiles outside the anchor."""
    lines = []
    for (window, level), score in cosines.items():
        spread = score[score.isfinite()].quantile(torch.tensor(QUANTILES)).tolist()
        lines.append([f"window {window}, {level}", *(f"{value:.3f}" for value in spread)])
    return markdown(["best cosine", *(f"{q:.0%}" for q in QUANTILES)], lines)


def keep_table(cosines: Cosines) -> str:
    """Tokens kept at closer thresholds; no question needs to be asked for these."""
    lines = []
    for window in WINDOWS:
        scores = torch.cat([cosines[window, level] for level in LEVELS])
        kept = [(scores <= threshold).double().mean().item() for threshold in CLOSER]
        lines.append([f"window {window}", *(f"{100 * share:.1f}" for share in kept)])
    return markdown(["kept % at threshold", *map(str, CLOSER)], lines)


def tables(results: Results) -> Iterator[str]:
    yield main_table(results.rows)
    cosines = best_cosines(results.corpus)
    yield cosine_table(cosines)
    yield keep_table(cosines)


if __name__ == "__main__":
    run(__doc__, "thresholds", settings=all_settings, tables=tables)
