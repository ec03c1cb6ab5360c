"""Quadtrees over the cells of a frame: which blocks of cells stay whole.

Dimension key: T token frames, N = H*W cells of a frame, L levels of the pyramid, P nodes of all its
levels, R nodes of its coarsest level (the roots), D channels.

1. The pyramid. The cells are the finest level, the leaves. While both sides of a level are longer
   than 2, a coarser one stands above it: pairs of rows and pairs of columns are averaged, and of an
   odd side the first row or column is averaged alone. A node has 4, 2 or 1 children, and its value
   is their mean, each child counting alike. 14x14 has the levels 14x14, 7x7, 4x4, 2x2; 23x40 ends
   at 2x3, 3x5 at 2x3; 1xN, 2xN and their like have no level but the cells.
2. The search begins at the roots. A node stays whole when its cosine with every child is at least
   the threshold; otherwise its children are looked at. Leaves are whole. A node with a single child
   is that child, and stays whole when the child does.

A node's cosines do not depend on the threshold. It is split by every threshold above the greatest,
over the node and the nodes above it, of their smallest cosine with a child: by its *split
threshold*.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.fusion.cosine import EPSILON, require_finite_norms
from schemas.grid import TokenGrid


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Quadtree:
    """The pyramid of every frame of a grid. Nodes are numbered level by level, the roots first.

    Attributes:
        sides: height and width of each level, the coarsest first.
        ancestor: ``(L, N)`` int64, the node of each level in which each cell lies.
        share: ``(L, N)`` float32, the weight of each cell in that node; powers of two.
        parent: ``(P,)`` int64, the node above; roots are their own.
        num_children: ``(P,)`` int64, 0 for leaves.
        corner: ``(P,)`` int64, the top-left cell of each node.
    """

    sides: tuple[tuple[int, int], ...]
    ancestor: Tensor
    share: Tensor
    parent: Tensor
    num_children: Tensor
    corner: Tensor

    @property
    def num_nodes(self) -> int:
        return self.parent.numel()

    @property
    def num_roots(self) -> int:
        return self.sides[0][0] * self.sides[0][1]

    @property
    def num_inner(self) -> int:
        """Nodes that have children; they come before the leaves."""
        return self.num_nodes - self.ancestor.shape[1]

    @property
    def levels(self) -> list[slice]:
        """The nodes of each level, the coarsest first."""
        slices, start = [], 0
        for height, width in self.sides:
            slices.append(slice(start, start + height * width))
            start += height * width
        return slices


def grow_quadtree(grid: TokenGrid, device: torch.device) -> Quadtree:
    """The pyramid over the cells of a frame of ``grid``, with its tensors on ``device``."""
    sides = [(grid.height, grid.width)]
    rows, columns = [torch.arange(grid.height)], [torch.arange(grid.width)]
    while min(sides[-1]) > 2:
        height, width = sides[-1]
        rows.append((rows[-1] + height % 2) // 2)
        columns.append((columns[-1] + width % 2) // 2)
        sides.append(((height + 1) // 2, (width + 1) // 2))
    ancestors: list[Tensor] = []
    first = 0
    for (height, width), row_H, column_W in zip(
        sides[::-1], rows[::-1], columns[::-1], strict=True
    ):
        ancestors.append((first + row_H[:, None] * width + column_W).flatten())
        first += height * width
    parent_P = torch.arange(first)
    for coarser_N, finer_N in pairwise(ancestors):
        parent_P[finer_N] = coarser_N
    num_roots = sides[-1][0] * sides[-1][1]
    num_children_P = torch.bincount(parent_P[num_roots:], minlength=first)
    ancestor_LN = torch.stack(ancestors)
    cells_LN = torch.arange(grid.tokens_per_frame).expand_as(ancestor_LN)
    corner_P = torch.full((first,), grid.tokens_per_frame).scatter_reduce(
        0, ancestor_LN.flatten(), cells_LN.flatten(), "amin"
    )
    num_below_LN = num_children_P.clamp_min(1)[ancestor_LN]
    return Quadtree(
        sides=tuple(sides[::-1]),
        ancestor=ancestor_LN.to(device),
        share=num_below_LN.flip(0).cumprod(dim=0).flip(0).float().reciprocal().to(device),
        parent=parent_P.to(device),
        num_children=num_children_P.to(device),
        corner=corner_P.to(device),
    )


def pool_frame(frame_ND: Tensor, tree: Quadtree, nodes_PD: Tensor) -> None:
    """Fill ``nodes_PD``, float32, with the value of every node of one frame, summed in float32."""
    planes = [
        nodes_PD[level].view(height, width, -1)
        for level, (height, width) in zip(tree.levels, tree.sides, strict=True)
    ]
    planes[-1].flatten(0, 1).copy_(frame_ND)
    for coarser, finer in zip(planes[-2::-1], planes[:0:-1], strict=True):
        coarser.copy_(_halve(_halve(finer, 0), 1))


def _halve(plane: Tensor, side: int) -> Tensor:
    """Means of neighbours along one side; of an odd number the first stays alone."""
    length = plane.shape[side]
    odd = length % 2
    pairs = torch.unflatten(plane.narrow(side, odd, length - odd), side, (-1, 2))
    return torch.cat([plane.narrow(side, 0, odd), pairs.mean(dim=side + 1)], dim=side)


def cosines_of(left_UD: Tensor, right_UD: Tensor, squares_2U: Tensor, out_UD: Tensor) -> Tensor:
    """Cosines of pairs of rows, ``(U,)`` float32; of equal rows exactly 1.

    Args:
        left_UD: ``(U, D)`` float32.
        right_UD: ``(U, D)`` float32.
        squares_2U: ``(2, U)`` float32, the squared norms of both, summed as products are here.
        out_UD: ``(U, D)`` room for the products; may be one of the two.
    """
    dot_U = torch.mul(left_UD, right_UD, out=out_UD).sum(dim=-1)
    norms_U = squares_2U.double().clamp_min(EPSILON**2).prod(dim=0).sqrt()
    return (dot_U.double() / norms_U).float()


@torch.no_grad()
def child_cosines(tokens: Tensor, grid: TokenGrid, tree: Quadtree) -> tuple[Tensor, Tensor]:
    """Cosine of every node with the one above it, frame by frame.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        tree: the quadtree of this grid.

    Returns:
        ``(T, P)`` float32 cosines, roots with themselves, and ``(T, P)`` float32 squared norms.

    Raises:
        FusionError: tokens that are not finite, or so large that a norm overflows float32.
    """
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    nodes_PD, work_PD = torch.empty(
        2, tree.num_nodes, tokens.shape[1], dtype=torch.float32, device=tokens.device
    )
    cosine_TP, square_TP = torch.empty(
        2, grid.frames, tree.num_nodes, dtype=torch.float32, device=tokens.device
    )
    for frame_ND, cosine_P, square_P in zip(frames_TND, cosine_TP, square_TP, strict=True):
        pool_frame(frame_ND, tree, nodes_PD)
        square_P.copy_(torch.mul(nodes_PD, nodes_PD, out=work_PD).sum(dim=-1))
        torch.index_select(nodes_PD, 0, tree.parent, out=work_PD)
        squares_2P = torch.stack([square_P, square_P[tree.parent]])
        cosine_P.copy_(cosines_of(nodes_PD, work_PD, squares_2P, work_PD))
    require_finite_norms(square_TP, grid)
    return cosine_TP, square_TP


def split_thresholds(tree: Quadtree, cosine_TP: Tensor) -> Tensor:
    """The split threshold of every node, ``(T, P)`` float32; infinite for leaves.

    Args:
        tree: the quadtree.
        cosine_TP: the cosine of every node with the one above it.
    """
    below_root = slice(tree.num_roots, None)
    threshold_TP = torch.full_like(cosine_TP, torch.inf).scatter_reduce_(
        1,
        tree.parent[below_root].expand(len(cosine_TP), -1),
        cosine_TP[:, below_root],
        "amin",
    )
    child_P = torch.zeros_like(tree.parent).index_copy(
        0,
        tree.parent[below_root],
        torch.arange(tree.num_nodes, device=cosine_TP.device)[below_root],
    )
    for level in tree.levels[-2::-1]:
        own, child = threshold_TP[:, level], threshold_TP[:, child_P[level]]
        threshold_TP[:, level] = torch.where(tree.num_children[level] == 1, child, own)
    for level in tree.levels[1:-1]:
        above = threshold_TP[:, tree.parent[level]]
        threshold_TP[:, level] = torch.maximum(threshold_TP[:, level], above)
    return threshold_TP


def whole_levels(tree: Quadtree, is_split_TP: Tensor) -> Tensor:
    """The level of the whole node in which each cell lies, ``(T, N)`` int64, 0 at the roots.

    Args:
        tree: the quadtree.
        is_split_TP: ``(T, P)`` bool; where a node is split, so are all above it.
    """
    num_frames, num_cells = len(is_split_TP), tree.ancestor.shape[1]
    level_TN = torch.zeros(num_frames, num_cells, dtype=torch.int64, device=is_split_TP.device)
    for ancestor_N in tree.ancestor[:-1]:
        level_TN += is_split_TP[:, ancestor_N]
    return level_TN
