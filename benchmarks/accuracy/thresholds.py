"""TTF by threshold, window and motion: `python benchmarks/accuracy/thresholds.py [--model DIR]`.

Prints Markdown: tokens kept and accuracy for thresholds 0.5 to 0.99, windows 1, 3 and 5 and each
motion level, and how the best cosines of tokens are spread.
"""

import argparse

import torch
from answering import BLIND, answer_all, blind_answers
from corpus import Corpus, add_options, open_corpus, write_result
from methods import FULL
from settings import Setting
from tables import MEAN_OF_KINDS, find, markdown, percent

from examples.toyworld.scene import LEVELS
from pipeline.evaluation.report import ResultRow, summarize
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


def measure(corpus: Corpus, *, processes: int) -> tuple[ResultRow, ...]:
    settings = [FULL, *(setting_of(t, w) for w in WINDOWS for t in THRESHOLDS)]
    answers = answer_all(corpus, settings, processes=processes)
    return summarize(corpus.questions, [*answers, blind_answers(corpus)], by=("kind", "level"))


def main_table(rows: tuple[ResultRow, ...]) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    given = parser.parse_args()
    corpus = open_corpus(given)
    rows = measure(corpus, processes=given.processes)
    write_result(corpus, "thresholds", [row.to_json() for row in rows])
    print(f"### {corpus.name}: {len(corpus.questions)} questions about {given.videos} videos\n")
    print(main_table(rows))
    print(cosine_table(corpus))


if __name__ == "__main__":
    main()
