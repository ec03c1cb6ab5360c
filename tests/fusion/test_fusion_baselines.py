import numpy as np
import pytest
import torch

from pipeline.fusion import plan_fusion
from pipeline.fusion.baselines import nearest_kept
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

GRID = TokenGrid(9, 2, 3)
TOKENS = torch.randn(GRID.num_tokens, 8, generator=torch.Generator().manual_seed(0))


def plan(method, grid=GRID, **settings):
    tokens = TOKENS if grid is GRID else torch.ones(grid.num_tokens, 4)
    return plan_fusion(tokens, grid, FusionConfig(method=method, **settings))


def test_none_keeps_every_token_in_grid_order():
    found = plan("none", threshold=-0.5)
    assert found.keep_index.tolist() == list(range(54))
    assert found.storage_index.tolist() == list(range(54))
    assert found.match_index.tolist() == list(range(54))
    assert (found.nested, found.anchor_frame, found.keep_ratio) == (False, None, 1.0)


def test_none_keeps_what_threshold_one_would_fuse_by_rounding():
    grid = TokenGrid(4, 5, 5)
    frame = torch.randn(25, 48, generator=torch.Generator().manual_seed(1))
    tokens = frame.repeat(4, 1)
    assert plan_fusion(tokens, grid, FusionConfig(threshold=1.0)).num_kept < grid.num_tokens
    assert plan_fusion(tokens, grid, FusionConfig(method="none")).num_kept == grid.num_tokens


def test_none_refuses_a_budget_and_names_the_methods_that_keep_one():
    with pytest.raises(FusionError, match=r"choose one of: ttf, ttf-shots, .*, uniform, random"):
        plan("none", budget=0.5)


def test_uniform_keeps_a_third_of_the_frames_from_first_to_last():
    found = plan("uniform")
    assert sorted({index // 6 for index in found.keep_index.tolist()}) == [0, 4, 8]
    assert found.num_kept == 18
    assert found.storage_index.tolist() == found.keep_index.tolist()
    assert not found.nested


@pytest.mark.parametrize("num_kept", range(1, 55))
def test_uniform_keeps_any_budget_exactly(num_kept):
    found = plan("uniform", budget=num_kept)
    frames, counts = np.unique(found.keep_index.numpy() // 6, return_counts=True)
    assert found.num_kept == num_kept
    assert len(frames) == -(-num_kept // 6)
    assert (counts[:-1] == 6).all()


def test_uniform_takes_the_surplus_from_the_last_frame_evenly():
    found = plan("uniform", budget=9)
    assert found.keep_index.tolist() == [0, 1, 2, 3, 4, 5, 48, 50, 53]


def test_random_is_nested_and_repeatable_and_obeys_its_seed():
    small, large = plan("random", budget=10), plan("random", budget=30)
    assert small.nested
    assert large.storage_index[:10].tolist() == small.storage_index.tolist()
    assert plan("random", budget=10).keep_index.tolist() == small.keep_index.tolist()
    assert plan("random", budget=10, seed=1).keep_index.tolist() != small.keep_index.tolist()


def test_random_scores_are_places_in_the_draw():
    found = plan("random")
    assert found.num_kept == 18
    expected = np.arange(18) / 54
    np.testing.assert_allclose(found.score[found.storage_order].numpy(), expected, rtol=1e-7)


def test_random_with_the_whole_budget_keeps_everything():
    assert plan("random", budget=1.0).keep_index.tolist() == list(range(54))


def nearest_by_loops(kept, grid):
    """The documented rule, token by token."""
    per_frame = grid.tokens_per_frame
    cells = sorted({index % per_frame for index in kept})
    found = []
    for index in range(grid.num_tokens):
        t, cell = divmod(index, per_frame)
        y, x = divmod(cell, grid.width)
        cell = min(
            cells,
            key=lambda c: ((c // grid.width - y) ** 2 + (c % grid.width - x) ** 2, c),
        )
        times = [i // per_frame for i in kept if i % per_frame == cell]
        found.append(min(times, key=lambda s: (abs(s - t), s)) * per_frame + cell)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_kept_token_stands_for_a_fused_one(seed):
    random = np.random.default_rng(seed)
    grid = TokenGrid(*(int(side) for side in random.integers(1, 7, 3)))
    count = int(random.integers(1, grid.num_tokens + 1))
    kept = np.sort(random.permutation(grid.num_tokens)[:count])
    found = nearest_kept(torch.from_numpy(kept), grid)
    assert found.tolist() == nearest_by_loops(kept.tolist(), grid)
