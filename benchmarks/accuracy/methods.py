"""Every fusion method at equal budgets: `python benchmarks/accuracy/methods.py [--model DIR]`.

Prints Markdown: accuracy of each method at 50, 33, 25, 15 and 10 % of the tokens, as its paired
difference to all tokens and to TTF, then for each budget by motion level and by kind of question.
"""

from collections.abc import Callable, Iterable, Iterator

from answering import BLIND
from corpus import Corpus
from script import Results, Rows, run
from settings import Setting
from tables import MEAN_OF_KINDS, find, markdown, percent, points

from examples.toyworld.questions import KINDS
from examples.toyworld.scene import LEVELS
from pipeline.evaluation.report import ResultRow
from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import METHODS, FusionConfig

BUDGETS = (0.50, 0.33, 0.25, 0.15, 0.10)
FULL = Setting("all tokens", FusionConfig(method="none"))
BUDGETED = tuple(name for name, method in METHODS.items() if method.budgeted)


def setting_of(method: str, budget: float) -> Setting:
    return Setting(f"{method} {budget:.0%}", FusionConfig(method=method, budget=budget))


def is_possible(corpus: Corpus, setting: Setting) -> bool:
    """Whether a method can keep so few: all videos have the same grid, so one of them tells."""
    video = corpus.whole.load(corpus.questions[0].video_id)
    try:
        plan_fusion(video.embeddings, video.grid, setting.fusion)
    except FusionError:
        return False
    return True


def all_settings(corpus: Corpus) -> list[Setting]:
    budgeted = [setting_of(method, budget) for method in BUDGETED for budget in BUDGETS]
    return [FULL, *(setting for setting in budgeted if is_possible(corpus, setting))]


def budget_table(rows: Rows, methods: Iterable[str], cell: Callable[[ResultRow], str]) -> str:
    """Something of each method and budget's mean of kinds; "refused" where a method keeps more.

    Words alone have the same in every column.
    """
    cells = {row.setting: cell(row) for row in rows if (row.by, row.group) == MEAN_OF_KINDS}
    lines = [
        [method, *(cells.get(setting_of(method, budget).name, "refused") for budget in BUDGETS)]
        for method in methods
    ]
    if BLIND in cells:
        lines.append([BLIND, *[cells[BLIND]] * len(BUDGETS)])
    return markdown(["method", *(f"{budget:.0%}" for budget in BUDGETS)], lines)


def accuracy(row: ResultRow) -> str:
    return f"{100 * row.accuracy.value:.1f}"


def difference(row: ResultRow) -> str:
    return points(row.difference)


def main_tables(rows: Rows) -> Iterator[str]:
    """Right answers of each method and budget, and the differences to all tokens."""
    full, blind = find(rows, FULL.name, *MEAN_OF_KINDS), find(rows, BLIND, *MEAN_OF_KINDS)
    yield (
        f"All tokens: {percent(full.accuracy)} %; words alone: {percent(blind.accuracy)} %. "
        "Right answers in percent:\n\n" + budget_table(rows, BUDGETED, accuracy)
    )
    yield "Differences to all tokens, in points:\n\n" + budget_table(rows, BUDGETED, difference)


def ttf_table(results: Results) -> str:
    """Each method's difference to TTF at the same budget."""
    others = [method for method in BUDGETED if method != "ttf"]
    rows: list[ResultRow] = []
    for budget in BUDGETS:
        names = [setting_of(method, budget).name for method in others]
        asked = [name for name in names if name in results.answers]
        rows += results.against(setting_of("ttf", budget).name, asked)
    return "Differences to TTF at the same budget, in points:\n\n" + budget_table(
        tuple(rows), others, difference
    )


def group_table(rows: Rows, budget: float, by: str, groups: tuple[str, ...]) -> str:
    """Accuracy with all tokens by group, and each method's difference to it at one budget.

    Groups differ in their mix of questions: compare within a column only.
    """
    found = {(row.setting, row.group): row for row in rows if row.by == by}
    names = [setting_of(method, budget).name for method in BUDGETED]
    lines = [
        ["questions", *(str(found[FULL.name, group].num_questions) for group in groups)],
        *(
            [name, *(accuracy(found[name, group]) for group in groups)]
            for name in (FULL.name, BLIND)
        ),
        *(
            [name, *(points(found[name, group].difference) for group in groups)]
            for name in names
            if (name, groups[0]) in found
        ),
    ]
    return markdown([f"by {by}", *groups], lines)


def tables(results: Results) -> Iterator[str]:
    yield from main_tables(results.rows)
    yield ttf_table(results)
    for budget in BUDGETS:
        yield group_table(results.rows, budget, "level", LEVELS)
        yield group_table(results.rows, budget, "kind", KINDS)


if __name__ == "__main__":
    run(__doc__, "methods", settings=all_settings, tables=tables)
