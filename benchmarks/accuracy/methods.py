"""Every fusion method at equal budgets: `python benchmarks/accuracy/methods.py [--model DIR]`.

Prints Markdown: accuracy of each method at 50, 33, 25, 15 and 10 % of the tokens, as its paired
difference to all tokens and to TTF, then by motion level and by kind of question.
"""

from collections.abc import Iterator

from answering import BLIND
from corpus import Corpus
from script import Results, Rows, run
from settings import Setting
from tables import MEAN_OF_KINDS, find, markdown, percent, points

from examples.toyworld.questions import KINDS
from examples.toyworld.scene import LEVELS
from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import METHODS, FusionConfig

BUDGETS = (0.50, 0.33, 0.25, 0.15, 0.10)
SHOWN = 0.25
"""The budget whose levels and kinds are printed; all are in the JSON."""

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


def main_table(rows: Rows) -> str:
    """Mean of kinds, and its difference to all tokens; "refused" where a method keeps more."""
    full, blind = find(rows, FULL.name, *MEAN_OF_KINDS), find(rows, BLIND, *MEAN_OF_KINDS)
    differences = {
        row.setting: points(row.difference) for row in rows if (row.by, row.group) == MEAN_OF_KINDS
    }
    lines = [
        [method, *(differences.get(setting_of(method, b).name, "refused") for b in BUDGETS)]
        for method in BUDGETED
    ]
    return (
        f"All tokens: {percent(full.accuracy)} %; words alone: {percent(blind.accuracy)} %. "
        "Differences to all tokens, in points:\n\n"
        + markdown(["method", *(f"{budget:.0%}" for budget in BUDGETS)], lines)
    )


def ttf_table(results: Results) -> str:
    """Mean of kinds, each method's difference to TTF at the same budget."""
    differences: dict[str, str] = {}
    for budget in BUDGETS:
        names = [setting_of(method, budget).name for method in BUDGETED if method != "ttf"]
        asked = [name for name in names if name in results.answers]
        for row in results.against(setting_of("ttf", budget).name, asked):
            if (row.by, row.group) == MEAN_OF_KINDS:
                differences[row.setting] = points(row.difference)
    lines = [
        [method, *(differences.get(setting_of(method, b).name, "refused") for b in BUDGETS)]
        for method in BUDGETED
        if method != "ttf"
    ]
    return "Differences to TTF at the same budget, in points:\n\n" + markdown(
        ["method", *(f"{budget:.0%}" for budget in BUDGETS)], lines
    )


def group_table(rows: Rows, by: str, groups: tuple[str, ...]) -> str:
    """Accuracy with all tokens by group, and each method's difference to it at one budget.

    Groups differ in their mix of questions: compare within a column only.
    """
    found = {(row.setting, row.group): row for row in rows if row.by == by}
    names = [setting_of(method, SHOWN).name for method in BUDGETED]
    lines = [
        ["questions", *(str(found[FULL.name, group].num_questions) for group in groups)],
        *(
            [name, *(f"{100 * found[name, group].accuracy.value:.1f}" for group in groups)]
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
    yield main_table(results.rows)
    yield ttf_table(results)
    yield group_table(results.rows, "level", LEVELS)
    yield group_table(results.rows, "kind", KINDS)


if __name__ == "__main__":
    run(__doc__, "methods", settings=all_settings, tables=tables)
