"""Weighted means of groups of tokens, the same bits for the same bytes on every run.

Dimension key: G tokens, K groups, S groups of several tokens, M tokens in those, V values of a
token, C values of one block.
"""

import math

import torch
from torch import Tensor

_BLOCK_VALUES = 2**19
_LEAST_WIDTH = 16
"""Values averaged at a time stay in the cache; narrower columns would waste what is read."""


def weighted_means(
    tokens: Tensor, match: Tensor, weight: Tensor, rows: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """The mean of each group of tokens, summed in float64 in the order of the grid.

    The sum is divided by the sum of the weights: equal tokens of float32 or narrower have
    themselves as their mean, although weights are rounded. A group of one token is that token, bit
    for bit.
    Temporaries are of the asked groups only: ``_LEAST_WIDTH`` values a token at most, or
    ``_BLOCK_VALUES`` in all. Tokens whose sides cannot be joined to one without a copy are copied.

    Args:
        tokens: ``(G, ...)`` floating or whole numbers; not modified.
        match: ``(G,)`` int64, the group of each token, named by one of its tokens.
        weight: ``(G,)`` float32, not negative; only the proportions within a group count.
        rows: ``(K,)`` int64, the groups in the order of the result, each once; each has a token.
        dtype: type of the result; None is that of ``tokens``.

    Returns:
        ``(K, ...)``; whole numbers are rounded to the nearest, to the even one of two.
    """
    values_GV = tokens.reshape(len(tokens), math.prod(tokens.shape[1:]))
    means_KV = values_GV.index_select(0, rows).to(dtype or tokens.dtype)
    lengths_K = torch.bincount(match, minlength=len(tokens))[rows]
    shared_S = (lengths_K > 1).nonzero().squeeze(1)
    if len(shared_S):
        members_M = _members(match, rows[shared_S])
        lengths_S, weight_M = lengths_K[shared_S], weight[members_M].double()
        total_S1 = torch.segment_reduce(weight_M[:, None], "sum", lengths=lengths_S)
        width = max(_LEAST_WIDTH, _BLOCK_VALUES // len(members_M))
        for first in range(0, values_GV.shape[1], width):
            block_MC = values_GV[:, first : first + width].index_select(0, members_M).double()
            block_MC *= weight_M[:, None]
            means_SC = torch.segment_reduce(block_MC, "sum", lengths=lengths_S) / total_S1
            if not means_KV.is_floating_point():
                means_SC = means_SC.round()
            means_KV[shared_S, first : first + width] = means_SC.to(means_KV.dtype)
    return means_KV.reshape(len(rows), *tokens.shape[1:])


def _members(match: Tensor, groups: Tensor) -> Tensor:
    """Tokens of the groups, group after group, each in the order of the grid."""
    place_G = torch.full_like(match, len(groups))
    place_G[groups] = torch.arange(len(groups), device=match.device)
    place_of_token_G = place_G[match]
    members_M = (place_of_token_G < len(groups)).nonzero().squeeze(1)
    return members_M[place_of_token_G[members_M].argsort(stable=True)]
