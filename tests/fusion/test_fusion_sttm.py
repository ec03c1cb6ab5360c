"""STTM against plain loops over pairs of nodes in float64, written from the rules only."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.fusion import plan_fusion
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.test_fusion_quadtree import (
    ROUNDING,
    cosine,
    frames_of,
    grow,
    smooth_video,
    walk,
    whole_nodes,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = settings(max_examples=25, deadline=None)


@dataclass
class Reference:
    """What is decided, and the smallest margin of any decision."""

    match: list[int] = field(default_factory=list)
    rows: dict[int, np.ndarray] = field(default_factory=dict)
    score: dict[int, float] = field(default_factory=dict)
    margin: float = np.inf
    num_nodes: int = 0

    def decide(self, left, right):
        self.margin = min(self.margin, abs(left - right))


def partners(cut, found):
    """For each node of each frame but the first: its partner and the cosine with it."""
    best = {}
    for t in range(1, len(cut)):
        for node in cut[t]:
            around = [
                other for other in cut[t - 1] if other.area <= node.area or node.area <= other.area
            ]
            ranked = sorted(
                ((cosine(node.value, other.value), other) for other in around),
                key=lambda pair: (-pair[0], pair[1].corner),
            )
            if len(ranked) > 1:
                found.decide(ranked[0][0], ranked[1][0])
            best[node] = ranked[0]
    return best


def fuse(cut, joined, partner, grid, found):
    """Follow the joins, and take the mean over the nodes that end at the same one."""
    time = {node: t for t, nodes in enumerate(cut) for node in nodes}
    trees = {}
    found.match = [0] * grid.num_tokens
    for node, t in time.items():
        root = node
        while root in joined:
            root = partner[root][1]
        place = time[root] * grid.tokens_per_frame + root.corner
        trees.setdefault(place, []).append(node.value)
        found.score[place] = partner[root][0] if root in partner else -np.inf
        for cell in node.cells:
            found.match[t * grid.tokens_per_frame + cell] = place
    found.rows = {place: np.mean(values, axis=0) for place, values in trees.items()}
    return found


def with_thresholds(tokens, grid, spatial, temporal):
    found = Reference()
    roots = [grow(frame) for frame in frames_of(tokens, grid)]
    for nodes in roots:
        for node in walk(nodes):
            if len(node.children) > 1:
                found.decide(node.alike, spatial)
    cut = [whole_nodes(nodes, spatial) for nodes in roots]
    found.num_nodes = sum(map(len, cut))
    partner = partners(cut, found)
    for value, _ in partner.values():
        found.decide(value, temporal)
    joined = {node for node, (value, _) in partner.items() if value >= temporal}
    return fuse(cut, joined, partner, grid, found)


def cut_by(nodes, split):
    found = []
    for node in nodes:
        found.extend(cut_by(node.children, split) if node in split else [node])
    return found


def in_order_of_splits(roots):
    """Inner nodes with their split thresholds, in the order in which they are split."""
    listed = []
    for t, nodes in enumerate(roots):
        above = {}
        for number, node in enumerate(walk(nodes)):
            if node.children:
                value = max(node.alike, above.get(node, -np.inf))
                above.update(dict.fromkeys(node.children, value))
                listed.append((value, t, number, node))
    return sorted(listed, key=lambda entry: entry[:3])


def with_budget(tokens, grid, spatial, num_kept):
    found = Reference()
    roots = [grow(frame) for frame in frames_of(tokens, grid)]
    order = in_order_of_splits(roots)
    cuts = []
    for count in range(len(order) + 1):
        split = {entry[3] for entry in order[:count]}
        cuts.append([cut_by(nodes, split) for nodes in roots])
    asked = sum(entry[0] < spatial for entry in order)
    room = [n for n, cut in enumerate(cuts) if len(cut[0]) <= num_kept <= sum(map(len, cut))]
    num_splits = (
        min(room, key=lambda n: abs(n - asked))
        if room
        else next(n for n, cut in enumerate(cuts) if len(cut[0]) >= num_kept)
    )
    values = np.array([entry[0] for entry in order])
    for value in [*values[max(0, num_splits - 1) : num_splits + 1], spatial]:
        others = values[values != value]
        found.margin = min(found.margin, np.abs(others - value).min(initial=np.inf))
    cut = cuts[num_splits]
    found.num_nodes = sum(map(len, cut))
    num_joins = found.num_nodes - num_kept
    partner = partners(cut, found)
    if not room:
        last = order[num_splits - 1][3]
        children = sorted(last.children, key=lambda child: -cosine(child.value, last.value))
        near = [cosine(child.value, last.value) for child in children]
        found.decide(near[num_joins], near[num_joins + 1] if num_joins + 1 < len(near) else -9)
        together = children[: num_joins + 1]
        first = min(together, key=lambda child: child.corner)
        joined = set(together) - {first}
        return fuse(cut, joined, dict.fromkeys(together, (-np.inf, first)), grid, found)
    ranked = sorted(partner, key=lambda node: -partner[node][0])
    if 0 < num_joins < len(ranked):
        found.decide(partner[ranked[num_joins - 1]][0], partner[ranked[num_joins]][0])
    return fuse(cut, set(ranked[:num_joins]), partner, grid, found)


def random_cases(count):
    random = np.random.default_rng(11)
    for number in range(count):
        grid = TokenGrid(
            *(int(side) for side in (random.integers(1, 10), *random.integers(1, 8, 2)))
        )
        if number % 3 == 0:
            grid = TokenGrid(grid.frames, grid.height + 3, grid.width + 3)
        share = random.random()
        yield pytest.param(grid, DTYPES[number % 3], number, share, id=f"{grid}-{number}")


def case_video(grid, dtype, seed):
    return smooth_video(grid, (16, 33, 64)[seed % 3], seed=seed, dtype=dtype)


@cache
def threshold_case(grid, dtype, seed):
    spatial, temporal = ((0.85, 0.60), (0.70, 0.45), (0.55, 0.75), (0.95, 0.30))[seed % 4]
    tokens = case_video(grid, dtype, seed)
    config = FusionConfig(method="sttm", spatial_threshold=spatial, threshold=temporal)
    return tokens, config, with_thresholds(tokens, grid, spatial, temporal)


@cache
def budget_case(grid, dtype, seed, share):
    tokens = case_video(grid, dtype, seed)
    smallest = num_roots(grid)
    num_kept = smallest + int(share**2 * (grid.num_tokens + 1 - smallest))
    spatial = (0.85, 0.5, 0.95)[seed % 3]
    config = FusionConfig(method="sttm", spatial_threshold=spatial, budget=num_kept)
    return tokens, config, with_budget(tokens, grid, spatial, num_kept)


def num_roots(grid):
    height, width = grid.height, grid.width
    while min(height, width) > 2:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height * width


def assert_as_expected(tokens, grid, config, expected):
    assert expected.margin > ROUNDING
    plan = plan_fusion(tokens, grid, config)
    assert plan.match_index.tolist() == expected.match
    assert plan.keep_index.tolist() == sorted(expected.rows)
    places = plan.keep_index.tolist()
    rows = plan.apply(tokens.float()).numpy()
    np.testing.assert_allclose(rows, [expected.rows[place] for place in places], atol=1e-5)
    score = [expected.score[place] for place in places]
    np.testing.assert_allclose(plan.score.numpy(), score, atol=ROUNDING)


@pytest.mark.parametrize(("grid", "dtype", "seed", "share"), list(random_cases(36)))
def test_at_thresholds_matches_means_and_scores_are_those_of_the_plain_loops(
    grid, dtype, seed, share
):
    tokens, config, expected = threshold_case(grid, dtype, seed)
    assert_as_expected(tokens, grid, config, expected)


@pytest.mark.parametrize(("grid", "dtype", "seed", "share"), list(random_cases(36)))
def test_with_a_budget_matches_means_and_scores_are_those_of_the_plain_loops(
    grid, dtype, seed, share
):
    tokens, config, expected = budget_case(grid, dtype, seed, share)
    assert len(expected.rows) == config.budget
    assert_as_expected(tokens, grid, config, expected)


def test_the_random_cases_hold_blocks_single_cells_and_joins_of_both():
    cases = [case.values for case in random_cases(36)]
    at_thresholds = [(grid, threshold_case(grid, *rest)[2]) for grid, *rest, _ in cases]
    with_budgets = [(grid, budget_case(grid, *rest)[2]) for grid, *rest in cases]
    for found in (at_thresholds, with_budgets):
        assert sum(expected.num_nodes < grid.num_tokens for grid, expected in found) >= 15
        assert (
            sum(expected.num_nodes > num_roots(grid) * grid.frames for grid, expected in found)
            >= 15
        )
        assert sum(len(expected.rows) < expected.num_nodes for _, expected in found) >= 15
        assert sum(np.isfinite(list(expected.score.values())).any() for _, expected in found) >= 15


@st.composite
def videos(draw):
    grid = TokenGrid(*(draw(st.integers(1, 7)) for _ in range(3)))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**32))
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(-1, 2, (grid.num_tokens, 3), generator=generator).to(dtype)
    else:
        values = smooth_video(grid, 12, seed=seed, dtype=dtype)
    if draw(st.booleans()):
        values = values[: grid.tokens_per_frame].repeat(grid.frames, 1)
    return values, grid


configs = st.builds(
    FusionConfig,
    method=st.just("sttm"),
    threshold=st.floats(-0.99, 1.0),
    spatial_threshold=st.floats(-0.99, 1.0),
)


def plan_bytes(plan):
    tensors = (plan.keep_index, plan.match_index, plan.score, plan.weight, plan.storage_order)
    return tuple(tensor.numpy().tobytes() for tensor in tensors)


@CASES
@given(videos(), configs, st.floats(0, 1))
def test_any_budget_from_the_roots_of_a_frame_to_all_tokens_is_exact(video, config, share):
    tokens, grid = video
    smallest = num_roots(grid)
    budget = smallest + round(share * (grid.num_tokens - smallest))
    spatial = config.spatial_threshold
    plan = plan_fusion(
        tokens, grid, FusionConfig(method="sttm", budget=budget, spatial_threshold=spatial)
    )
    assert plan.num_kept == budget
    assert plan.match_index[plan.keep_index].tolist() == plan.keep_index.tolist()
    assert plan.storage_order.tolist() == list(range(budget))


@CASES
@given(videos(), configs)
def test_kept_nodes_were_not_alike_enough_and_matches_lie_in_no_later_frame(video, config):
    tokens, grid = video
    plan = plan_fusion(tokens, grid, config)
    per_frame = grid.tokens_per_frame
    assert (plan.score < config.threshold).all()
    assert (plan.score.isneginf() == (plan.keep_index < per_frame)).all()
    assert (plan.match_index <= torch.arange(grid.num_tokens)).all()
    assert plan.match_index[plan.keep_index].tolist() == plan.keep_index.tolist()
    alone = torch.bincount(plan.match_index, minlength=grid.num_tokens)[plan.match_index] == 1
    assert (plan.weight[alone] == 1).all()
    assert not plan.nested


@CASES
@given(videos(), configs)
def test_the_same_values_in_any_storage_type_give_the_same_plan(video, config):
    tokens, grid = video
    expected = plan_bytes(plan_fusion(tokens, grid, config))
    assert plan_bytes(plan_fusion(tokens.clone(), grid, config)) == expected
    assert plan_bytes(plan_fusion(tokens.float(), grid, config)) == expected


@CASES
@given(videos(), configs, st.integers(1, 7))
def test_no_later_frame_matters_to_what_is_kept(video, config, num_frames):
    tokens, grid = video
    part = TokenGrid(min(num_frames, grid.frames), grid.height, grid.width)
    early = plan_fusion(tokens[: part.num_tokens], part, config)
    whole = plan_fusion(tokens, grid, config)
    assert early.match_index.tolist() == whole.match_index[: part.num_tokens].tolist()
    assert early.score.tolist() == whole.score[: early.num_kept].tolist()


# One block of 2x2 cells of a 4x4 frame, which shows one thing or four, beside three that do not
# change. The block lies at cells 0, 1, 4 and 5; the others begin at cells 2, 8 and 10.
def frame_with(*corner):
    frame = torch.zeros(4, 4, 5)
    frame[:2, 2:, 2] = frame[2:, :2, 3] = frame[2:, 2:, 4] = 1
    values = corner * 4 if len(corner) == 1 else corner
    frame[:2, :2, :2] = torch.tensor(values, dtype=torch.float32).view(2, 2, 2)
    return frame.view(16, 5)


FOUR = frame_with((1, 0), (0, 1), (0, 1), (1, 0))
ONE = frame_with((1, 1))
IN_BLOCK = [0, 1, 4, 5]


def plan_frames(*frames, **settings):
    grid = TokenGrid(len(frames), 4, 4)
    return plan_fusion(torch.cat(frames), grid, FusionConfig(method="sttm", **settings))


def test_nodes_of_one_frame_are_not_fused_through_a_common_later_one():
    plan = plan_frames(FOUR, ONE)
    assert plan.keep_index.tolist() == [0, 1, 2, 4, 5, 8, 10]
    assert plan.match_index[16:].view(4, 4).tolist() == [
        [0, 0, 2, 2],
        [0, 0, 2, 2],
        [8, 8, 10, 10],
        [8, 8, 10, 10],
    ]
    assert plan.score.tolist() == [-torch.inf] * 7


def test_a_block_joins_the_most_alike_node_and_the_earliest_of_equals():
    plan = plan_frames(FOUR, frame_with((1, 2)))
    assert plan.match_index[16:][IN_BLOCK].tolist() == [1] * 4
    assert plan.weight[IN_BLOCK].tolist() == [1, 0.5, 1, 1]
    assert plan.weight[16:][IN_BLOCK].tolist() == [1 / 8] * 4


def test_each_node_counts_alike_and_once_in_the_mean():
    plan = plan_frames(ONE, FOUR)
    assert plan.keep_index.tolist() == [0, 2, 8, 10]
    np.testing.assert_allclose(plan.weight[IN_BLOCK], 1 / 20)
    np.testing.assert_allclose(plan.weight[16:][IN_BLOCK], 1 / 5)
    row = plan.apply(torch.cat([ONE, FOUR]))[0]
    np.testing.assert_allclose(row, [0.6, 0.6, 0, 0, 0], atol=1e-7)


def test_a_long_chain_of_blocks_and_cells_is_followed_to_its_end():
    plan = plan_frames(*[FOUR, ONE] * 16, FOUR)
    in_later = plan.match_index.view(33, 16)[1:, IN_BLOCK]
    assert plan.keep_index.tolist() == [0, 1, 2, 4, 5, 8, 10]
    assert (in_later == 0).all()
    assert plan.weight[0].item() == pytest.approx(1 / (1 + 16 + 16 * 4))


def test_tokens_that_drift_slowly_are_fused_into_the_first():
    angle = torch.arange(300) / 3
    tokens = torch.stack([angle.cos(), angle.sin()], dim=1)
    plan = plan_fusion(tokens, TokenGrid(300, 1, 1), FusionConfig(method="sttm"))
    assert plan.keep_index.tolist() == [0]
    np.testing.assert_allclose(plan.weight, 1 / 300, rtol=1e-6)


def test_cosines_equal_to_a_threshold_are_enough():
    grid = TokenGrid(2, 1, 1)
    tokens = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]])
    joined = plan_fusion(tokens, grid, FusionConfig(method="sttm", threshold=0.5))
    apart = plan_fusion(tokens, grid, FusionConfig(method="sttm", threshold=0.5001))
    assert (joined.num_kept, apart.num_kept) == (1, 2)
    assert apart.score.tolist() == [-torch.inf, 0.5]
    four = torch.eye(4).view(2, 2, 4).repeat(2, 2, 1).view(16, 4)
    for threshold, num_kept in ((0.5, 4), (0.5001, 16)):
        config = FusionConfig(method="sttm", spatial_threshold=threshold)
        assert plan_fusion(four, TokenGrid(1, 4, 4), config).num_kept == num_kept


def test_equal_frames_are_fused_at_threshold_one():
    grid = TokenGrid(5, 9, 7)
    frame = torch.randn(63, 1000, generator=torch.Generator().manual_seed(1))
    config = FusionConfig(method="sttm", threshold=1.0, spatial_threshold=0.9)
    plan = plan_fusion(frame.repeat(5, 1), grid, config)
    alone = plan_fusion(frame, TokenGrid(1, 9, 7), config)
    assert plan.keep_index.tolist() == alone.keep_index.tolist()


def test_thresholds_of_the_method_are_used_where_none_is_given():
    grid = TokenGrid(4, 9, 9)
    tokens = smooth_video(grid, 16, seed=4)
    default = plan_fusion(tokens, grid, FusionConfig(method="sttm"))
    config = FusionConfig(method="sttm", threshold=0.6, spatial_threshold=0.85)
    assert plan_bytes(default) == plan_bytes(plan_fusion(tokens, grid, config))
    assert 20 < default.num_kept < 300


@pytest.mark.parametrize("sides", [(2, 30), (3, 4), (5, 6), (1, 9), (9, 1), (2, 2), (1, 1), (4, 3)])
def test_odd_even_and_narrow_sides_may_be_mixed(sides):
    grid = TokenGrid(3, *sides)
    tokens = smooth_video(grid, 12, seed=5)
    for budget in {num_roots(grid), grid.tokens_per_frame, grid.num_tokens}:
        plan = plan_fusion(tokens, grid, FusionConfig(method="sttm", budget=budget))
        sums = torch.zeros(grid.num_tokens).index_add(0, plan.match_index, plan.weight)
        assert plan.num_kept == budget
        np.testing.assert_allclose(sums[plan.keep_index], 1, atol=1e-6)


@pytest.mark.parametrize("sides", [(4, 4), (5, 6), (7, 7), (2, 5)])
def test_a_single_frame_keeps_every_possible_budget(sides):
    grid = TokenGrid(1, *sides)
    tokens = smooth_video(grid, 12, seed=6)
    for budget in range(num_roots(grid), grid.num_tokens + 1):
        plan = plan_fusion(tokens, grid, FusionConfig(method="sttm", budget=budget))
        assert plan.num_kept == budget


def test_the_children_of_the_last_split_that_are_most_alike_stay_together():
    frame = frame_with((4, 0), (0, 1), (4, 1), (4, -1))
    plan = plan_frames(frame, budget=5)
    assert plan.keep_index.tolist() == [0, 1, 2, 8, 10]
    assert plan.match_index[IN_BLOCK].tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(plan.weight[IN_BLOCK], [1 / 3, 1, 1 / 3, 1 / 3])


@pytest.mark.parametrize("sides", [(14, 14), (7, 10)])
def test_a_budget_of_all_tokens_gives_every_token_back(sides):
    grid = TokenGrid(2, *sides)
    tokens = torch.ones(grid.num_tokens, 3, dtype=torch.bfloat16)
    plan = plan_fusion(tokens, grid, FusionConfig(method="sttm", budget=1.0))
    assert plan.keep_index.tolist() == list(range(grid.num_tokens))
    assert (plan.weight == 1).all()


def test_a_budget_below_the_roots_of_one_frame_names_the_smallest_possible_one():
    tokens = smooth_video(TokenGrid(5, 9, 14), 8, seed=7)
    with pytest.raises(FusionError, match=r"2x2 roots .* only 3\. Ask for at least 4 tokens"):
        plan_fusion(tokens, TokenGrid(5, 9, 14), FusionConfig(method="sttm", budget=3))
    narrow = TokenGrid(3, 2, 9)
    with pytest.raises(FusionError, match="at least 18 tokens"):
        plan_fusion(torch.ones(54, 4), narrow, FusionConfig(method="sttm", budget=17))


def test_a_budget_changes_the_quadtree_only_where_it_must():
    grid = TokenGrid(6, 8, 8)
    tokens = smooth_video(grid, 16, seed=8)
    cells = plan_fusion(tokens, grid, FusionConfig(method="sttm", threshold=1.0))
    assert 24 < cells.num_kept < 384
    config = FusionConfig(method="sttm", budget=cells.num_kept)
    assert plan_fusion(tokens, grid, config).match_index.tolist() == cells.match_index.tolist()


class LargestTensor(TorchDispatchMode):
    """Remembers the number of values of the largest tensor that is made, views of one left out."""

    def __init__(self, known):
        super().__init__()
        self.known = known.untyped_storage().data_ptr()
        self.num_values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage().data_ptr() != self.known
            ):
                self.num_values = max(self.num_values, tensor.numel())
        return result


def test_working_memory_is_that_of_two_pyramids_and_no_table_of_pairs():
    grid = TokenGrid(16, 24, 24)
    tokens = smooth_video(grid, 64, seed=9, dtype=torch.bfloat16)
    with LargestTensor(tokens) as largest:
        plan_fusion(tokens, grid, FusionConfig(method="sttm"))
    assert 0 < largest.num_values <= 3 * grid.tokens_per_frame * 64
