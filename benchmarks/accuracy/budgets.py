"""One cache read at five budgets against five caches: `python benchmarks/accuracy/budgets.py`.

Builds a TTF cache of all tokens, in its progressive order, and one at each budget, asks all
questions of each through the same code as `tokenreel eval`, prints right answers (mean of kinds)
and counts the answers that differ. Exits 1 where any does.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from answering import BLIND, MANNER, blind_answers
from corpus import Corpus, make_cache, model_parser, open_corpus, write_result
from methods import BUDGETS
from tables import MEAN_OF_KINDS, find, markdown, percent

from jobs.evaluate import evaluate
from pipeline.evaluation.journal import FILE_NAME
from pipeline.evaluation.records import FULL
from pipeline.evaluation.report import ResultRow, summarize
from pipeline.evaluation.rows import read_rows
from schemas.fusion import FusionConfig

HEADS = ("budget", "questions", "right %, read from one", "right %, built", "answers that differ")


@dataclass(frozen=True, slots=True)
class Asked:
    """One cache, asked at some settings: its answers by setting and question, and their sums."""

    answers: Mapping[str, Mapping[str, str]]
    rows: tuple[ResultRow, ...]

    def right(self, setting: str) -> str:
        return percent(find(self.rows, setting, *MEAN_OF_KINDS).accuracy)


def ask(corpus: Corpus, budget: float, budgets: tuple[float, ...]) -> Asked:
    """All questions, of a cache built at ``budget`` and read at ``budgets``."""
    world = corpus.work.parent
    cache = corpus.work / f"ttf-{budget}"
    make_cache(world, cache, corpus.model, FusionConfig(method="ttf", budget=budget))
    out = corpus.work / f"ttf-{budget}.eval"
    report = evaluate(
        [world / "questions.jsonl"],
        str(cache),
        model=str(corpus.model),
        budgets=budgets,
        by=("kind",),
        out=out,
        device="cpu",
        manner=MANNER,
    )
    answers: dict[str, dict[str, str]] = {}
    for row in read_rows(out / FILE_NAME)[1:]:
        found = answers.setdefault(str(row.values["setting"]), {})
        found[str(row.values["question_id"])] = str(row.values["answer"])
    return Asked(answers, report.rows)


def main() -> None:
    given = model_parser(__doc__).parse_args()
    corpus = open_corpus(given)
    progressive = ask(corpus, 1.0, BUDGETS)
    lines, num_different = [], 0
    for budget in BUDGETS:
        name = f"budget={budget}"
        built = ask(corpus, budget, ())
        read, full = progressive.answers[name], built.answers[FULL]
        different = sum(read[question] != full[question] for question in full)
        num_different += different
        lines.append(
            [
                f"{budget:.0%}",
                str(len(full)),
                progressive.right(name),
                built.right(FULL),
                str(different),
            ]
        )
    write_result(corpus, "budgets", [dict(zip(HEADS, line, strict=True)) for line in lines])
    blind = summarize(corpus.questions, [blind_answers(corpus)], by=("kind",))
    words = percent(find(blind, BLIND, *MEAN_OF_KINDS).accuracy)
    print(f"All tokens: {progressive.right(FULL)} %; words alone: {words} %.\n")
    print(markdown(HEADS, lines))
    sys.exit(num_different > 0)


if __name__ == "__main__":
    main()
