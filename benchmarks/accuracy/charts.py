"""Plots of the tables: `python benchmarks/accuracy/charts.py [--work DIR] [--out DIR]`.

Reads what thresholds.py and methods.py left in --work, for every model that was measured, and
writes SVG files. Needs matplotlib (the `bench` group).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from answering import BLIND
from corpus import digest_sources, world_folder, world_parser
from methods import BUDGETED, BUDGETS, FULL, setting_of
from thresholds import THRESHOLDS, WINDOWS
from thresholds import setting_of as threshold_setting

from examples.toyworld.questions import KINDS
from examples.toyworld.scene import LEVELS
from pipeline.evaluation.report import MEAN_OF_GROUPS

PLOTS = Path(__file__).parent / "plots"
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22")
STYLES = {
    "uniform": ("black", ":"),
    "random": ("black", "--"),
    "ttf": ("#d62728", "-"),
    **{
        name: (colour, "-")
        for name, colour in zip(
            (name for name in BUDGETED if name not in ("uniform", "random", "ttf")),
            COLOURS,
            strict=False,
        )
    },
}

Row = Mapping[str, Any]


def find(rows: Iterable[Row], setting: str, by: str, group: str) -> Row | None:
    wanted = (setting, by, group)
    return next((r for r in rows if (r["setting"], r["by"], r["group"]) == wanted), None)


def accuracy(row: Row) -> float:
    return 100 * float(row["accuracy"]["value"])


def draw_methods(axes: Any, rows: list[Row], by: str, group: str) -> None:
    """Accuracy of each method over the share of tokens that is kept."""
    for method in BUDGETED:
        found = [(b, find(rows, setting_of(method, b).name, by, group)) for b in BUDGETS]
        kept = [100 * budget for budget, row in found if row]
        values = [accuracy(row) for _, row in found if row]
        colour, line = STYLES[method]
        axes.plot(kept, values, line, color=colour, marker="o", markersize=3, label=method)
    for name, line in ((FULL.name, "-"), (BLIND, "-.")):
        row = find(rows, name, by, group)
        if row:
            axes.axhline(accuracy(row), color="grey", linestyle=line, linewidth=0.8)
    axes.set_title("mean of kinds" if group == MEAN_OF_GROUPS else group)


def methods_chart(rows: list[Row], by: str, groups: tuple[str, ...], path: Path) -> None:
    """One panel per group; a single one is larger, with its legend beside it."""
    across = min(4, len(groups))
    down = -(-len(groups) // across)
    is_single = len(groups) == 1
    size = (7.5, 4.5) if is_single else (4 * across, 3.2 * down)
    figure, panels = plt.subplots(down, across, figsize=size, sharex=True, squeeze=False)
    for panel, group in zip(panels.flat, groups, strict=False):
        draw_methods(panel, rows, by, group)
    for panel in panels[-1]:
        panel.set_xlabel("tokens kept, %")
    for panel in panels[:, 0]:
        panel.set_ylabel("right answers, %")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if is_single:
        figure.legend(handles, labels, loc="outside right center")
    else:
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    save(figure, path)


def thresholds_chart(rows: list[Row], path: Path) -> None:
    """Tokens kept and right answers over the threshold, by level and window."""
    size = (4 * len(LEVELS), 6)
    figure, panels = plt.subplots(2, len(LEVELS), figsize=size, sharex=True, sharey="row")
    for number, level in enumerate(LEVELS):
        for window in WINDOWS:
            found = [
                find(rows, threshold_setting(t, window).name, "level", level) for t in THRESHOLDS
            ]
            kept = [100 * row["keep_ratio"] for row in found if row]
            right = [accuracy(row) for row in found if row]
            for panel, values in zip(panels[:, number], (kept, right), strict=True):
                panel.plot(THRESHOLDS, values, marker="o", markersize=3, label=f"window {window}")
        panels[0, number].set_title(level)
        panels[1, number].set_xlabel("threshold")
    panels[0, 0].set_ylabel("tokens kept, %")
    panels[1, 0].set_ylabel("right answers, %")
    panels[0, 0].legend()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def main() -> None:
    parser = world_parser(__doc__)
    parser.add_argument("--out", type=Path, default=PLOTS, help="folder of the plots")
    given = parser.parse_args()
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "tokenreel", "figure.constrained_layout.use": True}
    )
    given.out.mkdir(parents=True, exist_ok=True)
    results = sorted(world_folder(given).glob(f"answers-*-{digest_sources()}/*.json"))
    if not results:
        parser.error(f"no results in {world_folder(given)}; run thresholds.py or methods.py first")
    drawn: dict[tuple[str, str], Path] = {}
    for path in results:
        kept = json.loads(path.read_text())
        name, rows = re.sub(r"\W+", "-", kept["model"]), kept["rows"]
        other = drawn.setdefault((path.stem, name), path)
        if other != path:
            parser.error(f"{other} and {path} are of two models called {name!r}; remove one")
        if path.stem == "thresholds":
            thresholds_chart(rows, given.out / f"thresholds-{name}.svg")
        elif path.stem == "methods":
            methods_chart(rows, "kind", (MEAN_OF_GROUPS,), given.out / f"methods-{name}.svg")
            methods_chart(rows, "level", LEVELS, given.out / f"methods-by-level-{name}.svg")
            methods_chart(rows, "kind", KINDS, given.out / f"methods-by-kind-{name}.svg")


if __name__ == "__main__":
    main()
