"""One cache read at five budgets against five caches: `python benchmarks/accuracy/budgets.py`.

Builds a TTF cache of all tokens, in its progressive order, and one at each budget, asks all
questions of each through the same code as `tokenreel eval`, and counts the answers that differ.
Exits 1 where any does.
"""

import sys

from corpus import Corpus, make_cache, model_parser, open_corpus, write_result
from methods import BUDGETS
from tables import markdown

from jobs.evaluate import evaluate
from pipeline.evaluation.answers import Manner
from pipeline.evaluation.journal import FILE_NAME
from pipeline.evaluation.rows import read_rows
from schemas.fusion import FusionConfig

MANNER = Manner(max_new_tokens=3, batch_size=32)
HEADS = ("budget", "questions", "answers that differ")


def answers_of(
    corpus: Corpus, budget: float, budgets: tuple[float, ...]
) -> dict[str, dict[str, str]]:
    """Answers by setting and question, of a cache built at ``budget`` and read at ``budgets``."""
    world = corpus.work.parent
    cache = corpus.work / f"ttf-{budget}"
    make_cache(world, cache, corpus.model, FusionConfig(method="ttf", budget=budget))
    out = corpus.work / f"ttf-{budget}.eval"
    evaluate(
        [world / "questions.jsonl"],
        str(cache),
        model=str(corpus.model),
        budgets=budgets,
        out=out,
        device="cpu",
        manner=MANNER,
    )
    found: dict[str, dict[str, str]] = {}
    for row in read_rows(out / FILE_NAME)[1:]:
        answers = found.setdefault(str(row.values["setting"]), {})
        answers[str(row.values["question_id"])] = str(row.values["answer"])
    return found


def main() -> None:
    given = model_parser(__doc__).parse_args()
    corpus = open_corpus(given)
    progressive = answers_of(corpus, 1.0, BUDGETS)
    lines, num_different = [], 0
    for budget in BUDGETS:
        read = progressive[f"budget={budget}"]
        built = answers_of(corpus, budget, ())["full"]
        different = sum(read[question] != built[question] for question in built)
        num_different += different
        lines.append([f"{budget:.0%}", str(len(built)), str(different)])
    write_result(corpus, "budgets", [dict(zip(HEADS, line, strict=True)) for line in lines])
    print(markdown(HEADS, lines))
    sys.exit(num_different > 0)


if __name__ == "__main__":
    main()
