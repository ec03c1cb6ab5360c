"""TTF in a closed loop against plain loops in float64, written from the rules and nothing else."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import DTYPES, ROUNDING, plan_bytes

CASES = settings(max_examples=20, deadline=None)


@dataclass
class Reference:
    kept: list
    match: list
    score: np.ndarray
    margin: float

    @property
    def smallest_fused(self):
        fused = [self.score[i] for i, match in enumerate(self.match) if match != i]
        return min(fused, default=np.inf)


def reference(tokens, grid, threshold, window=3, most_planes=3):
    """Token by token; ``margin`` is that of the closest decision between two different tokens."""
    unit = tokens.double().numpy()
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    per_frame, half = grid.tokens_per_frame, window // 2
    match = list(range(grid.num_tokens))
    score = np.full(grid.num_tokens, -np.inf)
    planes, margin = [list(range(per_frame))], np.inf
    for t in range(1, grid.frames):
        votes = [0] * len(planes)
        for cell in range(per_frame):
            token = t * per_frame + cell
            y, x = divmod(cell, grid.width)
            offered = [
                (plane[v * grid.width + u], number)
                for number, plane in enumerate(planes)
                for v in range(max(0, y - half), min(grid.height, y + half + 1))
                for u in range(max(0, x - half), min(grid.width, x + half + 1))
            ]
            best, number = offered[0]
            for other, of_plane in offered:
                if cosines[token, other] > cosines[token, best]:
                    best, number = other, of_plane
            score[token] = cosines[token, best]
            gaps = [score[token] - cosines[token, other] for other, _ in offered if other != best]
            margin = min(margin, abs(score[token] - threshold))
            if score[token] > threshold:
                margin = min(margin, *gaps, np.inf)
                match[token] = best
                votes[number] += 1
        frame = match[t * per_frame : (t + 1) * per_frame]
        kept = [match[token] == token for token in range(t * per_frame, (t + 1) * per_frame)]
        if sum(kept) > per_frame / 2:
            planes = [frame, *planes][:most_planes]
        else:
            used = planes.pop(votes.index(max(votes)))
            planes.insert(0, [frame[n] if kept[n] else used[n] for n in range(per_frame)])
    kept = [token for token, other in enumerate(match) if token == other]
    return Reference(kept, match, score, margin)


def reference_steps(tokens, grid, window=3):
    """The plans of all thresholds: between two steps of this staircase nothing changes."""
    threshold, steps = -2.0, []
    while threshold < np.inf:
        found = reference(tokens, grid, threshold, window)
        steps.append(found)
        threshold = found.smallest_fused
    return steps


def video(grid, num_channels, scenes, *, noise=0.3, drift=0.0, seed=0, dtype=torch.float32):
    """Frames of named scenes, a letter each, which come back under the same letter."""
    generator = torch.Generator().manual_seed(seed)
    shape = (grid.tokens_per_frame, num_channels)
    views = {name: torch.randn(shape, generator=generator) for name in sorted(set(scenes))}
    frames = []
    for name in scenes:
        views[name] = views[name] + drift * torch.randn(shape, generator=generator)
        amount = noise * torch.rand(shape[0], 1, generator=generator) * 2
        frames.append(views[name] + amount * torch.randn(shape, generator=generator))
    return torch.cat(frames).to(dtype)


def letters(*frames):
    """A token is a letter; unlike letters are at right angles. ``1xN`` cells."""
    rows = torch.eye(26)[[ord(letter) - ord("a") for frame in frames for letter in frame]]
    return rows, TokenGrid(len(frames), 1, len(frames[0]))


def closed(tokens, grid, **settings):
    return plan_fusion(tokens, grid, FusionConfig(method="ttf-closed", **settings))


def kept_letters(*frames, window=1):
    """For each frame what is kept of it, a dot where a token is fused."""
    tokens, grid = letters(*frames)
    kept = set(closed(tokens, grid, window=window).keep_index.tolist())
    marks = [x if i in kept else "." for i, x in enumerate("".join(frames))]
    width = grid.tokens_per_frame
    return ["".join(marks[i : i + width]) for i in range(0, len(marks), width)]


def random_cases(count):
    random = np.random.default_rng(11)
    for number in range(count):
        grid = TokenGrid(
            int(random.integers(1, 10)), *(int(side) for side in random.integers(1, 8, 2))
        )
        scenes = "".join(random.choice(list("ab" if number % 2 else "abcd"), grid.frames))
        if number % 4 == 0:
            scenes = "a" * grid.frames
        window = (1, 3, 5, 7)[number // 2 % 4]
        yield pytest.param(
            grid, scenes, window, DTYPES[number % 3], number, id=f"{grid}-{scenes}-w{window}"
        )


@pytest.mark.parametrize(("grid", "scenes", "window", "dtype", "seed"), list(random_cases(36)))
def test_the_plan_is_that_of_the_plain_loops(grid, scenes, window, dtype, seed):
    tokens = video(grid, 24, scenes, seed=seed, noise=0.6, drift=0.2, dtype=dtype)
    for threshold in (0.6, 0.8):
        expected = reference(tokens, grid, threshold, window)
        assert expected.margin > ROUNDING
        plan = closed(tokens, grid, threshold=threshold, window=window)
        assert plan.keep_index.tolist() == expected.kept
        assert plan.match_index.tolist() == expected.match
        np.testing.assert_allclose(plan.score.numpy(), expected.score[expected.kept], atol=2e-6)
        assert (plan.nested, plan.anchor_frame, plan.weight) == (False, None, None)
        assert plan.storage_order.tolist() == list(range(plan.num_kept))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_videos_of_returning_scenes_are_those_of_the_plain_loops(dtype):
    grid = TokenGrid(40, 3, 4)
    for seed in range(3):
        scenes = np.random.default_rng(seed).choice(list("abcd"), 40).tolist()
        tokens = video(grid, 32, scenes, seed=seed, noise=0.4, drift=0.15, dtype=dtype)
        expected = reference(tokens, grid, 0.75)
        assert expected.margin > ROUNDING
        assert closed(tokens, grid, threshold=0.75).match_index.tolist() == expected.match
        others = [reference(tokens, grid, 0.75, most_planes=number) for number in (1, 2, 4)]
        assert all(other.match != expected.match for other in others)


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        (("abc", "def", "abc", "def"), ["abc", "def", "...", "..."]),
        (("abc", "def", "ghi", "abc"), ["abc", "def", "ghi", "..."]),
        (("abc", "def", "ghi", "jkl", "abc"), ["abc", "def", "ghi", "jkl", "abc"]),
        (
            ("abc", "def", "ghi", "abc", "jkl", "abc", "def"),
            ["abc", "def", "ghi", "...", "jkl", "...", "def"],
        ),
        (("abc", "abd", "abc", "abd"), ["abc", "..d", "..c", "..d"]),
        (("ab", "cb", "ab"), ["ab", "c.", "a."]),
        (("abc", "dec", "abc", "dec"), ["abc", "de.", "...", "..."]),
        (("abc", "dec", "dbc", "aec"), ["abc", "de.", "...", "..."]),
        (("abc", "dec", "fec", "abc", "dec"), ["abc", "de.", "f..", "...", "d.."]),
        (("ab", "cd", "ad", "ef", "gh", "cd", "ab"), ["ab", "cd", "..", "ef", "gh", "..", "ab"]),
        (("abc", "def", "aec", "ghi", "jkl", "abc"), ["abc", "def", "...", "ghi", "jkl", "..."]),
    ],
    ids=[
        "a scene comes back",
        "three scenes are remembered",
        "the fourth scene takes the place of the first",
        "a plane that is used stays",
        "few new tokens take the place of old ones",
        "half of the frame is not more than half",
        "more than half makes a plane and leaves the old one",
        "matches are spread over planes",
        "few new tokens change the plane that was matched only",
        "of equal votes the later used plane stays",
        "the plane of most votes becomes the latest used",
    ],
)
def test_planes_are_made_changed_and_given_up_by_the_rules(frames, kept):
    assert kept_letters(*frames) == kept


def test_a_new_plane_names_matches_in_the_cells_of_fused_tokens():
    tokens, grid = letters("abc", "dec", "fgh", "ijk", "xyc")
    plan = closed(tokens, grid, window=1)
    assert plan.match_index.tolist()[3:6] == [3, 4, 2]
    assert plan.match_index.tolist()[12:] == [12, 13, 2]
    assert kept_letters("abc", "dec", "fgh", "ijk", "lmn", "xyc")[-1] == "xyc"


def test_equal_cosines_go_to_the_plane_used_last_then_to_the_earliest_place():
    tokens, grid = letters("aab", "bca", "aad")
    assert closed(tokens, grid, window=3).match_index.tolist() == [0, 1, 2, 3, 4, 1, 0, 1, 8]
    between = torch.tensor([[1.0, 1], [1, -1], [1, 0]])
    latest = closed(between, TokenGrid(3, 1, 1), threshold=0.5)
    assert latest.match_index.tolist() == [0, 1, 1]
    beside = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 1]])
    earliest = closed(beside, TokenGrid(2, 1, 2), threshold=0.5)
    assert earliest.match_index.tolist() == [0, 1, 0, 0]


def test_a_cosine_equal_to_the_threshold_keeps_the_token():
    tokens = torch.tensor([[1.0, 1, 1, 1], [1.0, 1, 1, -1]])
    grid = TokenGrid(2, 1, 1)
    assert closed(tokens, grid, threshold=0.5).num_kept == 2
    assert closed(tokens, grid, threshold=0.4999).num_kept == 1


def test_slow_change_is_compared_with_what_was_kept_and_not_with_what_was_fused():
    degrees = torch.arange(0, 190, 10, dtype=torch.float64).deg2rad()
    tokens = torch.stack([degrees.cos(), degrees.sin()], dim=1).float()
    plan = closed(tokens, TokenGrid(19, 1, 1), threshold=0.9)
    assert plan.keep_index.tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert plan.match_index.tolist() == [3 * (t // 3) for t in range(19)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scenes_that_alternate_cost_little_more_than_seeing_each_once(dtype):
    grid = TokenGrid(32, 5, 5)
    once = video(grid, 64, "a" * 16 + "b" * 16, dtype=dtype)
    again = video(grid, 64, "aaaabbbb" * 4, dtype=dtype)
    ratio_once = closed(once, grid).keep_ratio
    ratio_again = closed(again, grid).keep_ratio
    one_plane = reference(again, grid, 0.7, most_planes=1)
    assert ratio_again == pytest.approx(ratio_once, abs=0.01)
    assert len(one_plane.kept) / grid.num_tokens > 3 * ratio_again
    assert plan_fusion(again, grid, FusionConfig()).keep_ratio > 4 * ratio_again


def test_one_frame_is_kept_whole():
    grid = TokenGrid(1, 3, 4)
    for settings_ in ({"threshold": -0.9}, {"budget": 12}, {"budget": 1.0}):
        plan = closed(video(grid, 16, "a"), grid, **settings_)
        assert plan.keep_index.tolist() == list(range(12))
        assert plan.score.tolist() == [-torch.inf] * 12


def with_more(found, budget):
    """The matches when the fused tokens of smallest score stand for themselves."""
    fused = [i for i, match in enumerate(found.match) if match != i]
    fused.sort(key=lambda i: (found.score[i], i))
    more = set(fused[: budget - len(found.kept)])
    return [i if i in more else match for i, match in enumerate(found.match)]


@pytest.mark.parametrize("seed", range(3))
def test_every_budget_is_a_plan_of_the_plain_loops_and_the_smallest_scores_besides(seed):
    grid = TokenGrid(5, 2, 3)
    tokens = video(grid, 12, "aabba", seed=seed, noise=0.7)
    steps = reference_steps(tokens, grid)
    counts = [len(step.kept) for step in steps]
    num_certain = 0
    for budget in range(6, grid.num_tokens + 1):
        reached = [
            i
            for i, (count, higher) in enumerate(zip(counts, [*counts[1:], np.inf], strict=True))
            if count == budget or count < budget < higher
        ]
        plan = closed(tokens, grid, budget=budget)
        assert plan.num_kept == budget
        assert plan.match_index.tolist() in [with_more(steps[i], budget) for i in reached]
        num_certain += len(reached) == 1
    assert num_certain > 12


def test_a_budget_is_as_near_to_the_tokens_as_the_threshold_that_keeps_as_many():
    grid = TokenGrid(12, 4, 4)
    tokens = video(grid, 48, "aaaabbbbaabb", drift=0.1)
    num_same = 0
    for threshold in (0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        plan = closed(tokens, grid, threshold=threshold)
        assert grid.tokens_per_frame < plan.num_kept < grid.num_tokens
        found = closed(tokens, grid, budget=plan.num_kept, threshold=0.1)
        assert found.num_kept == plan.num_kept
        assert likeness_of_fused(found, tokens).min() > threshold - 0.01
        num_same += plan_bytes(found) == plan_bytes(plan)
    assert num_same >= 5


def test_a_budget_takes_the_earliest_of_equal_scores():
    tokens, grid = letters("abcd", "abcd", "abcd")
    plan = closed(tokens, grid, budget=7)
    assert plan.keep_index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert plan.match_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 0, 1, 2, 3]
    assert plan.score.tolist() == [-torch.inf] * 4 + [1.0] * 3


def test_the_budget_of_one_frame_is_frame_0_even_of_opposite_tokens():
    grid = TokenGrid(4, 1, 2)
    signs = torch.tensor([1.0, 1, -1, -1, 1, 1, -1, -1])
    plan = closed(signs[:, None] * torch.ones(8, 3), grid, budget=2, window=1)
    assert plan.keep_index.tolist() == [0, 1]
    assert plan.match_index.tolist() == [0, 1] * 4
    assert closed(video(grid, 8, "abcd"), grid, budget=2).keep_index.tolist() == [0, 1]


def test_a_budget_below_one_frame_names_the_smallest_possible_one():
    grid = TokenGrid(5, 3, 4)
    with pytest.raises(FusionError, match=r"'ttf-closed' .* at least 12 tokens"):
        closed(video(grid, 32, "aaaaa"), grid, budget=11)


@pytest.mark.parametrize("frame", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_cannot_be_compared_are_refused_wherever_they_stand(frame, dtype):
    grid = TokenGrid(4, 3, 3)
    for value in (float("nan"), float("inf")):
        tokens = video(grid, 8, "aaaa", dtype=dtype)
        tokens[frame * 9 + 5, 3] = value
        with pytest.raises(FusionError, match=f"token frame {frame} of grid 4x3x3"):
            closed(tokens, grid)
    tokens = video(grid, 8, "aaaa", dtype=dtype)
    tokens[frame * 9 + 5, 3] = 1e25
    with pytest.raises(FusionError, match="4x3x3 are not finite, or too large"):
        closed(tokens, grid)


def test_zero_tokens_are_alike_nothing():
    grid = TokenGrid(3, 1, 2)
    tokens = torch.zeros(6, 4)
    assert closed(tokens, grid, threshold=0.0).num_kept == 6
    assert closed(tokens, grid, threshold=-0.1).keep_index.tolist() == [0, 1]


def test_a_process_that_computes_in_low_precision_changes_nothing():
    grid = TokenGrid(6, 3, 3)
    tokens = video(grid, 32, "aabbab")
    expected = plan_bytes(closed(tokens, grid))
    with torch.autocast("cpu"):
        assert plan_bytes(closed(tokens, grid)) == expected


@st.composite
def videos(draw):
    grid = TokenGrid(draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    seed, dtype = draw(st.integers(0, 99)), draw(st.sampled_from(DTYPES))
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-2, 3, (grid.num_tokens, 3), generator=generator).to(dtype), grid
    scenes = draw(st.text("abcd", min_size=grid.frames, max_size=grid.frames))
    noise = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return video(grid, 16, scenes, noise=noise, seed=seed, dtype=dtype), grid


thresholds = st.floats(-0.99, 1.0)
windows = st.sampled_from([1, 3, 5])


@CASES
@given(videos(), thresholds, windows)
def test_every_fused_token_is_more_alike_an_earlier_kept_one_than_the_threshold(
    video, threshold, window
):
    tokens, grid = video
    plan = closed(tokens, grid, threshold=threshold, window=window)
    own = torch.arange(grid.num_tokens)
    fused = plan.match_index != own
    assert plan.keep_index.tolist() == own[~fused].tolist()
    assert set(plan.match_index.tolist()) == set(plan.keep_index.tolist())
    frame = own // grid.tokens_per_frame
    assert (plan.match_index[fused] // grid.tokens_per_frame < frame[fused]).all()
    assert (likeness_of_fused(plan, tokens) > threshold - ROUNDING).all()
    assert (plan.score <= torch.tensor(threshold, dtype=torch.float32)).all()


@CASES
@given(videos(), thresholds, windows)
def test_the_plan_of_the_first_frames_is_the_beginning_of_the_whole_plan(video, threshold, window):
    tokens, grid = video
    whole = closed(tokens, grid, threshold=threshold, window=window)
    for frames in range(1, grid.frames):
        part = TokenGrid(frames, grid.height, grid.width)
        plan = closed(tokens[: part.num_tokens], part, threshold=threshold, window=window)
        assert plan.match_index.tolist() == whole.match_index[: part.num_tokens].tolist()
        assert plan.score.tolist() == whole.score[: plan.num_kept].tolist()


@CASES
@given(videos(), st.floats(0.01, 1.0))
def test_a_budget_is_kept_exactly_and_the_same_bytes_give_the_same_plan(video, fraction):
    tokens, grid = video
    budget = max(grid.tokens_per_frame, int(fraction * grid.num_tokens))
    plan = closed(tokens, grid, budget=budget)
    assert plan.num_kept == budget
    assert plan.keep_index[: grid.tokens_per_frame].tolist() == list(range(grid.tokens_per_frame))
    assert plan_bytes(plan) == plan_bytes(closed(tokens.clone(), grid, budget=budget))


def likeness_of_fused(plan, tokens):
    """Float64 cosine of every fused token with its match."""
    unit = torch.nn.functional.normalize(tokens.double(), dim=1, eps=1e-12)
    fused = plan.match_index != torch.arange(len(tokens))
    return (unit * unit[plan.match_index]).sum(1)[fused]
