"""The quadtree against a recursion in float64, written from the rules and nothing else."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch

from pipeline.fusion.quadtree import (
    child_cosines,
    grow_quadtree,
    pool_frame,
    split_thresholds,
    whole_levels,
)
from schemas.errors import FusionError
from schemas.grid import TokenGrid

CPU = torch.device("cpu")
SIDES = [
    (1, 1),
    (1, 7),
    (2, 2),
    (2, 30),
    (3, 3),
    (3, 4),
    (3, 5),
    (5, 6),
    (7, 7),
    (10, 10),
    (14, 14),
]
ROUNDING = 2e-6


@dataclass(eq=False)
class Node:
    """A node of one frame's quadtree: its value, its cells and the nodes below it."""

    value: np.ndarray
    cells: list[int]
    children: list["Node"]

    @cached_property
    def alike(self):
        """The smallest cosine with a child; a node with an only child is that child."""
        if len(self.children) == 1:
            return self.children[0].alike
        return min((cosine(self.value, child.value) for child in self.children), default=np.inf)

    @cached_property
    def corner(self):
        return min(self.cells)

    @cached_property
    def area(self):
        return set(self.cells)


def cosine(left, right):
    return float(left @ right) / max(np.linalg.norm(left) * np.linalg.norm(right), 1e-24)


def pair_up(length):
    """Numbers that are pooled together along a side."""
    if length % 2:
        return [[0], *([n, n + 1] for n in range(1, length, 2))]
    return [[n, n + 1] for n in range(0, length, 2)]


def grow(frame):
    """Roots of the quadtree of a frame, ``(H, W, D)`` float64, row by row."""
    height, width = frame.shape[:2]
    level = [[Node(frame[y, x], [y * width + x], []) for x in range(width)] for y in range(height)]
    while len(level) > 2 and len(level[0]) > 2:
        level = [
            [
                join([level[y][x] for y in rows for x in columns])
                for columns in pair_up(len(level[0]))
            ]
            for rows in pair_up(len(level))
        ]
    return [node for row in level for node in row]


def join(children):
    cells = [cell for child in children for cell in child.cells]
    return Node(np.mean([child.value for child in children], axis=0), cells, children)


def walk(nodes):
    """All nodes of a tree, those of a level together, the coarsest first."""
    while nodes:
        yield from sorted(nodes, key=lambda node: node.corner)
        nodes = [child for node in nodes for child in node.children]


def whole_nodes(nodes, threshold):
    found = []
    for node in nodes:
        if not node.children or node.alike >= threshold:
            found.append(node)
        else:
            found.extend(whole_nodes(node.children, threshold))
    return found


def smooth_video(grid, num_channels, *, seed, dtype=torch.float32, change=0.7):
    """Large patches that drift, with some noise: cosines of all sizes, in space and in time."""
    random = np.random.default_rng(seed)
    values = np.empty((grid.frames, grid.height, grid.width, num_channels))
    patches = random.standard_normal((-(-grid.height // 3), -(-grid.width // 3), num_channels))
    for frame in values:
        patches += change * random.random() * random.standard_normal(patches.shape)
        frame[:] = patches.repeat(3, 0).repeat(3, 1)[: grid.height, : grid.width]
        noise = random.random((grid.height, grid.width, 1)) ** 2
        frame += 2 * noise * random.standard_normal(frame.shape)
    return torch.from_numpy(values.reshape(grid.num_tokens, -1)).to(dtype)


def frames_of(tokens, grid):
    return tokens.double().numpy().reshape(grid.frames, grid.height, grid.width, -1)


@pytest.mark.parametrize(
    ("sides", "levels"),
    [
        ((1, 1), [(1, 1)]),
        ((1, 9), [(1, 9)]),
        ((9, 1), [(9, 1)]),
        ((2, 2), [(2, 2)]),
        ((2, 30), [(2, 30)]),
        ((3, 5), [(2, 3), (3, 5)]),
        ((14, 14), [(2, 2), (4, 4), (7, 7), (14, 14)]),
        ((23, 40), [(2, 3), (3, 5), (6, 10), (12, 20), (23, 40)]),
    ],
)
def test_levels_go_up_while_both_sides_are_longer_than_two(sides, levels):
    tree = grow_quadtree(TokenGrid(1, *sides), CPU)
    assert list(tree.sides) == levels
    assert tree.num_roots == levels[0][0] * levels[0][1]
    assert tree.num_nodes - tree.num_inner == sides[0] * sides[1]


def test_the_first_row_and_column_of_odd_sides_are_pooled_alone():
    tree = grow_quadtree(TokenGrid(1, 3, 5), CPU)
    assert tree.ancestor[0].view(3, 5).tolist() == [
        [0, 1, 1, 2, 2],
        [3, 4, 4, 5, 5],
        [3, 4, 4, 5, 5],
    ]
    assert tree.num_children[:6].tolist() == [1, 2, 2, 2, 4, 4]
    assert tree.corner[:6].tolist() == [0, 1, 3, 5, 6, 8]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_corners_are_those_of_the_recursion(sides, dtype):
    grid = TokenGrid(1, *sides)
    tokens = smooth_video(grid, 8, seed=1, dtype=dtype)
    tree = grow_quadtree(grid, CPU)
    values = torch.empty(tree.num_nodes, 8)
    pool_frame(tokens, tree, values)
    expected = list(walk(grow(frames_of(tokens, grid)[0])))
    assert tree.corner.tolist() == [node.corner for node in expected]
    np.testing.assert_allclose(values, [node.value for node in expected], atol=1e-6)


@pytest.mark.parametrize("sides", [*SIDES, (23, 40)])
def test_shares_of_cells_give_the_value_of_every_node(sides):
    grid = TokenGrid(1, *sides)
    tokens = smooth_video(grid, 8, seed=2)
    tree = grow_quadtree(grid, CPU)
    values = torch.empty(tree.num_nodes, 8)
    pool_frame(tokens, tree, values)
    for ancestor, share in zip(tree.ancestor, tree.share, strict=True):
        weighted = torch.zeros(tree.num_nodes, 8).index_add(0, ancestor, share[:, None] * tokens)
        nodes = ancestor.unique()
        torch.testing.assert_close(weighted[nodes], values[nodes], atol=1e-6, rtol=0)
        sums = torch.zeros(tree.num_nodes).index_add(0, ancestor, share)
        assert (sums[nodes] == 1).all()


def test_children_count_alike_however_many_cells_they_have():
    tree = grow_quadtree(TokenGrid(1, 7, 7), CPU)
    assert tree.sides == ((2, 2), (4, 4), (7, 7))
    assert tree.ancestor[0].view(7, 7)[:, 0].tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert tree.share[0].view(7, 7)[:3, :3].tolist() == [
        [1 / 4, 1 / 8, 1 / 8],
        [1 / 8, 1 / 16, 1 / 16],
        [1 / 8, 1 / 16, 1 / 16],
    ]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whole_nodes_are_those_of_the_recursion_at_every_threshold(sides, dtype):
    grid = TokenGrid(3, *sides)
    tokens = smooth_video(grid, 24, seed=3, dtype=dtype)
    tree = grow_quadtree(grid, CPU)
    cosine_TP, _ = child_cosines(tokens, grid, tree)
    split_TP = split_thresholds(tree, cosine_TP)
    roots = [grow(frame) for frame in frames_of(tokens, grid)]
    values = [node.alike for nodes in roots for node in walk(nodes) if len(node.children) > 1]
    sizes = set()
    for threshold in (-0.9, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.99, 1.0):
        assert np.abs(np.array(values) - threshold).min(initial=1) > ROUNDING
        level_TN = whole_levels(tree, split_TP < threshold)
        corner_TN = tree.corner[tree.ancestor[level_TN, torch.arange(grid.tokens_per_frame)]]
        sizes.add(sum(len(corner_N.unique()) for corner_N in corner_TN))
        for corner_N, nodes in zip(corner_TN, roots, strict=True):
            for node in whole_nodes(nodes, threshold):
                assert corner_N[node.cells].tolist() == [node.corner] * len(node.cells)
    if sides[0] * sides[1] >= 25 and min(sides) > 2:
        assert len(sizes) >= 5


def test_a_node_with_a_single_child_is_split_where_the_child_is():
    grid = TokenGrid(1, 14, 14)
    tokens = torch.randn(196, 16, generator=torch.Generator().manual_seed(4))
    tree = grow_quadtree(grid, CPU)
    split_TP = split_thresholds(tree, child_cosines(tokens, grid, tree)[0])
    level_N = whole_levels(tree, split_TP < 1.0)[0].view(14, 14)
    assert (level_N == 3).all()


def test_a_frame_of_equal_tokens_is_whole_at_threshold_one():
    grid = TokenGrid(2, 7, 9)
    tokens = torch.randn(1, 1000, generator=torch.Generator().manual_seed(5)).repeat(126, 1)
    tree = grow_quadtree(grid, CPU)
    cosine_TP, _ = child_cosines(tokens, grid, tree)
    assert (cosine_TP == 1).all()
    assert not (split_thresholds(tree, cosine_TP)[:, : tree.num_roots] < 1.0).any()


def test_zero_tokens_have_cosine_zero_with_their_node_and_only_a_single_one_is_not_split():
    grid = TokenGrid(1, 3, 3)
    tree = grow_quadtree(grid, CPU)
    cosine_TP, _ = child_cosines(torch.zeros(9, 3), grid, tree)
    assert (cosine_TP == 0).all()
    level_TN = whole_levels(tree, split_thresholds(tree, cosine_TP) < 0.1)
    assert level_TN.tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e25])
def test_tokens_that_are_not_finite_or_too_large_are_refused(value):
    grid = TokenGrid(3, 3, 3)
    tokens = torch.ones(27, 4)
    tokens[14, 2] = value
    with pytest.raises(FusionError, match="grid 3x3x3 are not finite, or too large"):
        child_cosines(tokens, grid, grow_quadtree(grid, CPU))
