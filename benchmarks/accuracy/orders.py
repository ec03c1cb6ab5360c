"""Order and positions of kept tokens: `python benchmarks/accuracy/orders.py [--model DIR]`.

Prints Markdown: tokens in the order of time against the anchor's first; positions of the
uncompressed prompt against counting anew from 0, and rounded to bfloat16, near the beginning of the
prompt and 4,000 positions into it.
"""

from collections.abc import Iterator, Sequence

from answering import BLIND
from corpus import Corpus
from methods import FULL
from script import Results, Rows, run
from settings import POSITIONS, Setting
from tables import MEAN_OF_KINDS, find, markdown, percent, points

from examples.toyworld.questions import KINDS
from schemas.fusion import FusionConfig

BUDGETS = (0.5, 0.25)
TTF = {budget: FusionConfig(method="ttf", budget=budget) for budget in BUDGETS}


def all_settings(_: Corpus) -> list[Setting]:
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


def main_table(rows: Rows, names: Sequence[str]) -> str:
    lines = []
    for name in names:
        row = find(rows, name, *MEAN_OF_KINDS)
        kinds = [f"{100 * find(rows, name, 'kind', kind).accuracy.value:.0f}" for kind in KINDS]
        lines.append([name, percent(row.accuracy), points(row.difference), *kinds])
    return markdown(["", "mean of kinds %", "points to all tokens", *KINDS], lines)


def change_table(results: Results) -> str:
    """What changed positions or order alone cost: differences to the same tokens as they were."""
    columns = [FULL.name, *(f"ttf {budget:.0%}" for budget in BUDGETS)]
    ways = [*(way for way in POSITIONS if way != "realigned"), "anchor first"]
    found: dict[str, str] = {}
    for name in columns:
        names = [f"{name}, {way}" for way in ways if f"{name}, {way}" in results.answers]
        rows = results.against(name, names)
        found |= {each: points(find(rows, each, *MEAN_OF_KINDS).difference) for each in names}
    lines = [[way, *(found.get(f"{name}, {way}", "-") for name in columns)] for way in ways]
    return "Differences to the same tokens as they were, in points:\n\n" + markdown(
        ["", *columns], lines
    )


def tables(results: Results) -> Iterator[str]:
    names = [setting.name for setting in all_settings(results.corpus)]
    yield main_table(results.rows, [*names, BLIND])
    yield change_table(results)


if __name__ == "__main__":
    run(__doc__, "orders", settings=all_settings, tables=tables)
