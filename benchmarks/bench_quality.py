"""What each fusion method loses: `python benchmarks/bench_quality.py [--videos DIR] [--model DIR]`.

Prints Markdown tables: how far the original tokens are from the rows that stand for them and from
the nearest row, at each method's own rule and at equal budgets, on clips of DIR (by default
../shared/videos/real beside the repository, where it exists) and on synthetic tokens; at the end
where keeping whole frames or random tokens is better. No answer of a model is looked at.
"""

import argparse
import datetime as dt
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import fmean

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_fusion import cpu_name
from quality_videos import TokenVideo, real_videos, synthetic_videos

from pipeline.encoders.tiny import write_tiny_checkpoint
from pipeline.fusion import METHODS, plan_fusion
from pipeline.fusion.quality import LEVELS, Quality, Spread, measure_quality
from schemas.errors import FusionError
from schemas.fusion import FusionConfig

USUAL_VIDEOS = Path(__file__).parents[1] / "../shared/videos/real"
THRESHOLD = 0.70
BUDGETS = (0.50, 0.33, 0.25, 0.15, 0.10)
PLAIN = ("uniform", "random")
CLEARLY = 5e-4
"""A difference that shows in the third decimal."""

FIGURES: dict[str, Callable[[Quality], float]] = {
    "representative mean": lambda quality: quality.whole.representative.mean,
    "representative p1": lambda quality: quality.whole.representative.percentile_1,
    "nearest mean": lambda quality: quality.whole.nearest.mean,
    "nearest p1": lambda quality: quality.whole.nearest.percentile_1,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a table: a method and what is asked of it."""

    rule: str
    config: FusionConfig

    @property
    def method(self) -> str:
        return self.config.method


@dataclass(slots=True)
class Group:
    """Videos that are told together, by case what came of each, or why it was refused."""

    names: list[str] = field(default_factory=list)
    outcomes: dict[Case, list[Quality | str]] = field(default_factory=dict)

    def add(self, video: TokenVideo, cases: Sequence[Case]) -> None:
        self.names.append(video.name)
        for case in cases:
            self.outcomes.setdefault(case, []).append(measure(video, case))

    def done(self, case: Case) -> list[Quality]:
        return [each for each in self.outcomes[case] if isinstance(each, Quality)]


def own_rules() -> list[Case]:
    """Each threshold method at one threshold, and every method at its default."""
    cases = []
    for name, method in METHODS.items():
        if method.uses_threshold:
            thresholds = sorted({THRESHOLD, method.threshold}, reverse=True)
            cases += [Case(f"> {each:.2f}", FusionConfig(name, each)) for each in thresholds]
        else:
            cases.append(Case("default", FusionConfig(name)))
    return cases


def equal_budgets(budgets: Sequence[float]) -> list[Case]:
    able = [method.name for method in METHODS.values() if method.budgeted]
    return [
        Case(f"{each:.0%}", FusionConfig(name, budget=each)) for each in budgets for name in able
    ]


def measure(video: TokenVideo, case: Case) -> Quality | str:
    """The quality, or the reason of a refusal; ends the run where a promise does not hold."""
    try:
        plan = plan_fusion(video.tokens, video.grid, case.config)
    except FusionError as error:
        return short_reason(str(error), video.grid.num_tokens)
    quality = measure_quality(video.tokens, plan)
    total = video.grid.num_tokens
    if case.config.budget is not None and plan.num_kept != case.config.num_kept(total):
        raise SystemExit(f"{case} kept {plan.num_kept} of {total} tokens of {video.name}")
    if case.method == "none" and FIGURES["representative mean"](quality) != 1:
        raise SystemExit(f"keeping everything lost something of {video.name}: {quality}")
    return quality


def short_reason(message: str, num_tokens: int) -> str:
    """``needs >= 25 %`` where the message names a number of tokens, else how it begins."""
    bound = re.search(r"at (least|most) (\d+)", message)
    if not bound:
        return message[:60]
    sign = ">=" if bound[1] == "least" else "<="
    return f"needs {sign} {int(bound[2]) / num_tokens:.1%}"


def table(group: Group, cases: Sequence[Case]) -> Iterator[str]:
    titles = ["method", "rule", "kept", "mean", "p1", "min", "nearest mean", "p1", "min", *LEVELS]
    yield f"| {' | '.join(titles)} |"
    yield f"|:-|:-|:-|{'-:|' * (len(titles) - 3)}"
    for case in cases:
        done, outcomes = group.done(case), group.outcomes[case]
        refusals = Counter(each for each in outcomes if isinstance(each, str))
        kept = f"{fmean(each.keep_ratio for each in done):.1%}" if done else ""
        if refusals:
            reason, _ = refusals.most_common(1)[0]
            kept += f" {refusals.total()} of {len(outcomes)} cannot: {reason}"
        cells = [case.method, case.rule, kept.strip(), *figures(done)]
        yield f"| {' | '.join(cells)} |"


def figures(done: Sequence[Quality]) -> list[str]:
    """Means over videos of mean and p1, the smallest minimum; then mean / p1 by level."""
    if not done:
        return ["-"] * (6 + len(LEVELS))
    cells = []
    for name in ("representative", "nearest"):
        mean, first, least = columns(getattr(each.whole, name) for each in done)
        cells += [f"{fmean(mean):.3f}", f"{fmean(first):.3f}", f"{min(least):.3f}"]
    for level in LEVELS:
        parts = [each.levels[level] for each in done if level in each.levels]
        mean, first, _ = columns(part.representative for part in parts)
        cells.append(f"{fmean(mean):.3f} / {fmean(first):.3f}" if parts else "-")
    return cells


def columns(spreads: Iterable[Spread]) -> list[list[float]]:
    """All means, all first percentiles, all minima."""
    rows = [astuple(spread) for spread in spreads]
    return [[row[place] for row in rows] for place in range(3)]


def keep_ratios(groups: dict[str, Group], cases: Sequence[Case]) -> Iterator[str]:
    """What each threshold method keeps of each video."""
    yield f"| video | {' | '.join(f'{case.method} {case.rule}' for case in cases)} |"
    yield f"|:-|{'-:|' * len(cases)}"
    for title, group in groups.items():
        for number, name in enumerate(group.names):
            ratios = [group.outcomes[case][number] for case in cases]
            cells = [each if isinstance(each, str) else f"{each.keep_ratio:.3f}" for each in ratios]
            yield f"| {title}: {name} | {' | '.join(cells)} |"


def plain_wins(groups: dict[str, Group], cases: Sequence[Case]) -> Iterator[str]:
    """Which methods a plain baseline beats, by group, budget and figure, and how often."""
    yield f"| group | budget | {' | '.join(FIGURES)} |"
    yield "|:-|:-|" + ":-|" * len(FIGURES)
    compared: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for title, group in groups.items():
        for rule in dict.fromkeys(case.rule for case in cases):
            at_rule = {case.method: group.outcomes[case] for case in cases if case.rule == rule}
            cells = []
            for figure in FIGURES.values():
                winners = plain_winners(at_rule, figure)
                beaten = {method: winner for method, winner in winners.items() if winner}
                compared.update(winners.keys())
                lost.update(beaten.keys())
                cells.append(", ".join(f"{name} ({by})" for name, by in beaten.items()) or "-")
            yield f"| {title} | {rule} | {' | '.join(cells)} |"
    losses = ", ".join(f"{method} {lost[method]} of {compared[method]}" for method in compared)
    yield f"\nBeaten by a plain baseline, of all comparisons: {losses}"


def plain_winners(
    outcomes: dict[str, list[Quality | str]], figure: Callable[[Quality], float]
) -> dict[str, str]:
    """For each other method the plain baseline that is clearly better, on the videos it can do."""
    winners = {}
    for method, results in outcomes.items():
        able = [i for i, each in enumerate(results) if isinstance(each, Quality)]
        if able and method not in PLAIN:
            value, *plain = (
                fmean(figure(outcomes[name][i]) for i in able) for name in (method, *PLAIN)
            )
            is_beaten = max(plain) > value + CLEARLY
            winners[method] = PLAIN[plain.index(max(plain))] if is_beaten else ""
    return winners


def videos(options: argparse.Namespace) -> Iterator[TokenVideo]:
    if options.videos:
        with tempfile.TemporaryDirectory() as folder:
            model = options.model or str(write_tiny_checkpoint(Path(folder)))
            frames = 8 if options.quick else 32
            yield from real_videos(Path(options.videos), model, max_token_frames=frames)
    yield from synthetic_videos(is_quick=options.quick)


def header(options: argparse.Namespace) -> Iterator[str]:
    yield "What fusion loses: cosines of the original tokens with what is kept\n"
    yield f"- command: `python benchmarks/bench_quality.py{''.join(f' {a}' for a in sys.argv[1:])}`"
    machine = f"{cpu_name()}, {os.cpu_count()} cores, 1 thread; torch {torch.__version__}"
    yield f"- {dt.date.today()}, {machine}"
    if not options.videos:
        yield "- real clips: none. Give a folder of them with --videos."
    elif options.model:
        yield f"- encoder: {options.model}"
    else:
        yield (
            "- encoder: a tiny checkpoint with RANDOM WEIGHTS; a trained one keeps other numbers, "
            "so look at the pixels too, and give one with --model"
        )
    yield (
        "- mean, p1, min: of the cosines with the rows that stand for the tokens, then with the "
        "nearest rows; means over the videos of a group, min the smallest. The last columns are "
        "mean / p1 of the first kind by motion level."
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = USUAL_VIDEOS if USUAL_VIDEOS.is_dir() else None
    parser.add_argument("--videos", metavar="DIR", default=usual, help="of real clips")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint; default: tiny, random")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few, short videos and budgets: shows that it runs, judges nothing",
    )
    return parser.parse_args()


def main() -> int:
    torch.set_num_threads(1)
    options = parse_options()
    started = time.perf_counter()
    own = own_rules()
    equal = equal_budgets(BUDGETS[2:4] if options.quick else BUDGETS)
    groups: dict[str, Group] = {}
    for video in videos(options):
        groups.setdefault(video.group, Group()).add(video, [*own, *equal])
        seconds = time.perf_counter() - started
        print(f"{seconds:4.0f} s  {video.group}: {video.name}", file=sys.stderr)
    print("\n".join(header(options)))
    by_threshold = [case for case in own if METHODS[case.method].uses_threshold]
    print("\n## Share kept at a threshold\n", *keep_ratios(groups, by_threshold), sep="\n")
    for title, group in groups.items():
        print(f"\n## {title.capitalize()}: {'; '.join(group.names)}\n")
        print(*table(group, [*own, *equal]), sep="\n")
    print("\n## Where a plain baseline wins\n", *plain_wins(groups, equal), sep="\n")
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
