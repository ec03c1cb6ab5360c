"""Order and positions of kept tokens: `python benchmarks/accuracy/orders.py [--model DIR]`.

Prints Markdown: tokens in the order of time against the anchor's first; positions of the
uncompressed prompt against counting anew from 0, and rounded to bfloat16, near the beginning of the
prompt and 4,000 positions into it.
"""

import argparse

from answering import BLIND, answer_all, blind_answers
from corpus import Corpus, add_options, open_corpus, write_result
from methods import FULL
from settings import POSITIONS, Setting
from tables import MEAN_OF_KINDS, find, markdown, percent, points

from examples.toyworld.questions import KINDS
from pipeline.evaluation.report import ResultRow, summarize
from schemas.fusion import FusionConfig

BUDGETS = (0.5, 0.25)
TTF = {budget: FusionConfig(method="ttf", budget=budget) for budget in BUDGETS}


def all_settings() -> list[Setting]:
    """All tokens first, then TTF at each budget."""
    settings = [
        Setting(FULL.name if way == "realigned" else f"all tokens, {way}", FULL.fusion, way)
        for way in POSITIONS
    ]
    for budget, fusion in TTF.items():
        name = f"ttf {budget:.0%}"
        settings += [
            Setting(name if w == "realigned" else f"{name}, {w}", fusion, w) for w in POSITIONS
        ]
        first = FusionConfig(method="ttf", budget=budget, order="anchor_first")
        settings.append(Setting(f"{name}, anchor first", first))
    return settings


def measure(corpus: Corpus, *, processes: int) -> tuple[ResultRow, ...]:
    answers = answer_all(corpus, all_settings(), processes=processes)
    return summarize(corpus.questions, [*answers, blind_answers(corpus)], by=("kind",))


def main_table(rows: tuple[ResultRow, ...]) -> str:
    lines = []
    for name in [*(setting.name for setting in all_settings()), BLIND]:
        row = find(rows, name, *MEAN_OF_KINDS)
        kinds = [f"{100 * find(rows, name, 'kind', kind).accuracy.value:.0f}" for kind in KINDS]
        lines.append([name, percent(row.accuracy), points(row.difference), *kinds])
    return markdown(["", "mean of kinds %", "points to all tokens", *KINDS], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    given = parser.parse_args()
    corpus = open_corpus(given)
    rows = measure(corpus, processes=given.processes)
    write_result(corpus, "orders", [row.to_json() for row in rows])
    print(f"### {corpus.name}: {len(corpus.questions)} questions about {given.videos} videos\n")
    print(main_table(rows))


if __name__ == "__main__":
    main()
