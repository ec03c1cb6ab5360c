"""Spatio-temporal token merging: blocks of a quadtree, then blocks that resemble the frame before.

Dimension key: T token frames, N = H*W cells of a frame, G = T*N tokens, P nodes of a frame's
pyramid, U pairs of two frames, K kept tokens. The rules (arXiv 2507.07990) and their ties:

1. Every frame is cut into the whole nodes of its quadtree (``pipeline.fusion.quadtree``).
2. A whole node looks at those of the frame before whose block contains its own or lies in it: there
   is always one. The one with the greatest cosine is its partner, the one with the earliest
   top-left cell among equals. The two are joined when that cosine is at least the threshold.
3. Nodes that are joined, one to the next, end at one earliest node. All of them are fused into it:
   its top-left cell is kept, and its row is the mean of the nodes, each counting alike. Two nodes
   with a common later one are not fused with each other.

A budget of K tokens is kept by taking joins in descending order of their cosine, the earlier node
first among equals, until K nodes are left; the temporal threshold is not used. Where the quadtree
has fewer than K nodes, or more in the first frame, which joins nothing, nodes are split or made
whole, one by one and only as many as it takes, in the order of their split threshold (the earlier
frame, the coarser and the earlier node first among equals). A video of one frame has nothing to
join: where its last split gives one or two nodes too many, those children most like their node stay
together.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.quadtree import (
    Quadtree,
    child_cosines,
    cosines_of,
    grow_quadtree,
    pool_frame,
    split_thresholds,
    whole_levels,
)
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid


@torch.no_grad()
def plan_sttm(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan spatio-temporal token merging.

    Thresholds are rounded to float32, as cosines are. The score of a kept token is the cosine of
    its node with its partner, which was not enough to join them; -inf in the first frame.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold``, ``spatial_threshold`` and ``budget`` are used.

    Raises:
        FusionError: tokens that are not finite, or a budget below the roots of one frame.
    """
    tree = grow_quadtree(grid, tokens.device)
    _require_the_roots(tree, grid, config)
    cosine_TP, square_TP = child_cosines(tokens, grid, tree)
    splits_S = _choose_splits(tree, split_thresholds(tree, cosine_TP), config)
    is_split_TP = torch.zeros_like(cosine_TP, dtype=torch.bool)
    is_split_TP.view(-1)[splits_S] = True
    level_TN = whole_levels(tree, is_split_TP)
    cell_N = torch.arange(grid.tokens_per_frame, device=tokens.device)
    node_TN = tree.ancestor[level_TN, cell_N]
    score_G, partner_G = best_partners(tokens, grid, tree, node_TN, square_TP)

    every_G = torch.arange(grid.num_tokens, device=tokens.device)
    corner_G = every_G + (tree.corner[node_TN] - cell_N).flatten()
    if config.budget is None:
        into_G = torch.where(score_G >= config.fuses_above, partner_G, every_G)
    else:
        num_joins = int((corner_G == every_G).sum()) - config.num_kept(grid.num_tokens)
        joined_U = score_G.argsort(stable=True, descending=True)[:num_joins]
        into_U = partner_G[joined_U]
        if grid.frames == 1 and num_joins:
            joined_U, into_U = _keep_together(tree, cosine_TP[0], splits_S[-1], num_joins)
        into_G = every_G.index_copy(0, joined_U, into_U)
    share_G = tree.share[level_TN, cell_N].flatten()
    return _fuse(grid, corner_G, into_G, share_G, score_G)


def _require_the_roots(tree: Quadtree, grid: TokenGrid, config: FusionConfig) -> None:
    """Raise FusionError when a budget does not hold the roots of one frame."""
    num_kept = config.num_kept(grid.num_tokens)
    if num_kept < tree.num_roots:
        height, width = tree.sides[0]
        raise FusionError(
            f"fusion method {config.method!r} keeps the {height}x{width} roots of the first "
            f"frame's quadtree at least, and budget={config.budget!r} grants this video of {grid} "
            f"tokens only {num_kept}. Ask for at least {tree.num_roots} tokens, or choose "
            "'framefusion', 'random' or 'uniform'."
        )


def _choose_splits(tree: Quadtree, split_TP: Tensor, config: FusionConfig) -> Tensor:
    """The nodes that are split, in the order they are: ``(S,)`` int64 places in ``split_TP``.

    Every number of nodes can be kept from those of the first frame, which joins leave alone, to
    those of all frames. Both grow with each split, so the range of splits that leaves room for a
    budget is looked up. Of a single frame both are the same, and the range may be empty.
    """
    spatial = config.settled().spatial_threshold
    assert spatial is not None, "sttm has a default"
    order_S = split_TP.flatten().argsort(stable=True)
    num_splits = int((split_TP < spatial).sum())
    if config.budget is not None:
        num_frames, num_cells = len(split_TP), tree.ancestor.shape[1]
        num_kept = config.num_kept(num_frames * num_cells)
        growth_S = pad((tree.num_children - 1).clamp_min(0)[order_S % tree.num_nodes], (1, 0))
        is_first_S = pad(order_S < tree.num_nodes, (1, 0))
        in_all_S = num_frames * tree.num_roots + growth_S.cumsum(dim=0)
        in_first_S = tree.num_roots + (growth_S * is_first_S).cumsum(dim=0)
        fewest = int(torch.searchsorted(in_all_S, num_kept))
        most = int(torch.searchsorted(in_first_S, num_kept, right=True)) - 1
        num_splits = max(fewest, min(num_splits, most))
    return order_S[:num_splits]


def best_partners(
    tokens: Tensor, grid: TokenGrid, tree: Quadtree, node_TN: Tensor, square_TP: Tensor
) -> tuple[Tensor, Tensor]:
    """The partner of every whole node in the frame before.

    Two whole nodes of one cell lie one in the other: the top-left cell of the finer one names the
    pair, and no pair is met twice.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        tree: the quadtree of this grid.
        node_TN: int64, the whole node in which each cell lies.
        square_TP: float32, the squared norm of every node.

    Returns:
        ``(G,)`` float32 cosines and ``(G,)`` int64 top-left cells of the partners, at the top-left
        cells of the nodes. Elsewhere, and in the first frame, -inf and the cell itself.
    """
    every_TN = torch.arange(grid.num_tokens, device=tokens.device).view(node_TN.shape)
    corner_TN = tree.corner[node_TN]
    cell_N = every_TN[0]
    # The finer of two nodes has the greater number.
    is_pair_EN = tree.corner[torch.maximum(node_TN[1:], node_TN[:-1])] == cell_N
    cosine_EN = _pair_cosines(tokens, grid, tree, node_TN, is_pair_EN, square_TP)
    best_TN = torch.full_like(corner_TN, -torch.inf, dtype=torch.float32)
    best_TN[1:].scatter_reduce_(1, corner_TN[1:], cosine_EN, "amax")
    is_best_EN = is_pair_EN & (cosine_EN == best_TN[1:].gather(1, corner_TN[1:]))
    nowhere = grid.tokens_per_frame
    place_EN = torch.full_like(corner_TN[1:], nowhere).scatter_reduce_(
        1, corner_TN[1:], torch.where(is_best_EN, cell_N, nowhere), "amin"
    )
    found_EN = every_TN[:-1, :1] + corner_TN[:-1].gather(1, place_EN.clamp_max(nowhere - 1))
    partner_TN = every_TN.clone()
    partner_TN[1:] = torch.where(place_EN < nowhere, found_EN, every_TN[1:])
    return best_TN.flatten(), partner_TN.flatten()


def _pair_cosines(
    tokens: Tensor,
    grid: TokenGrid,
    tree: Quadtree,
    node_TN: Tensor,
    is_pair_EN: Tensor,
    square_TP: Tensor,
) -> Tensor:
    """Cosine of every pair of nodes of two frames, ``(T - 1, N)`` float32; -inf is no pair."""
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    then_PD, now_PD = torch.empty(
        2, tree.num_nodes, tokens.shape[1], dtype=torch.float32, device=tokens.device
    )
    left_ND, right_ND = torch.empty(
        2, *frames_TND.shape[1:], dtype=torch.float32, device=tokens.device
    )
    cosine_EN = torch.full_like(is_pair_EN, -torch.inf, dtype=torch.float32)
    pool_frame(frames_TND[0], tree, now_PD)
    for t, is_pair_N in enumerate(is_pair_EN):
        then_PD, now_PD = now_PD, then_PD
        pool_frame(frames_TND[t + 1], tree, now_PD)
        cell_U = is_pair_N.nonzero().squeeze(1)
        node_2U = node_TN[t : t + 2, cell_U]
        left_UD, right_UD = left_ND[: len(cell_U)], right_ND[: len(cell_U)]
        torch.index_select(then_PD, 0, node_2U[0], out=left_UD)
        torch.index_select(now_PD, 0, node_2U[1], out=right_UD)
        squares_2U = square_TP[t : t + 2].gather(1, node_2U)
        cosine_EN[t, cell_U] = cosines_of(left_UD, right_UD, squares_2U, left_UD)
    return cosine_EN


def _keep_together(
    tree: Quadtree, cosine_P: Tensor, node: Tensor, num_joins: int
) -> tuple[Tensor, Tensor]:
    """Join those children of a node that are most like it to the earliest of them.

    Returns:
        The top-left cells that are joined, and those that they are joined to; both ``(U,)``.
    """
    first_child = tree.num_roots
    children = first_child + (tree.parent[first_child:] == node).nonzero().squeeze(1)
    order = cosine_P[children].argsort(stable=True, descending=True)
    cell_U = tree.corner[children[order[: num_joins + 1]]]
    return cell_U, cell_U.min().expand_as(cell_U)


def _fuse(
    grid: TokenGrid, corner_G: Tensor, into_G: Tensor, share_G: Tensor, score_G: Tensor
) -> FusionPlan:
    """Follow the joins to the earliest node, and weigh the nodes that end there alike.

    Args:
        grid: the grid of all tokens.
        corner_G: int64, the top-left cell of each token's whole node.
        into_G: int64, what a node, named by its top-left cell, is joined to: itself or an earlier.
        share_G: float32, the weight of each token in its whole node.
        score_G: float32, the score of a node, at its top-left cell.
    """
    for _ in range(grid.frames.bit_length()):
        into_G = into_G[into_G]
    match_G = into_G[corner_G]
    every_G = torch.arange(grid.num_tokens, device=match_G.device)
    num_nodes_G = torch.bincount(match_G[corner_G == every_G], minlength=grid.num_tokens)
    keep_index = (match_G == every_G).nonzero().squeeze(1)
    return FusionPlan(
        method="sttm",
        grid=grid,
        keep_index=keep_index,
        match_index=match_G,
        weight=share_G / num_nodes_G[match_G],
        score=score_G[keep_index],
        storage_order=torch.arange(len(keep_index), device=match_G.device),
        nested=False,
    )
