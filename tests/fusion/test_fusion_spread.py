import pytest
import torch

from pipeline.fusion import plan_fusion
from pipeline.fusion.spread import spread_frames
from schemas.fusion import METHODS, FusionConfig
from schemas.grid import TokenGrid


def test_whole_frames_come_first_middle_quarters():
    order = torch.arange(8 * 2 + 3)
    found = spread_frames(order, 8, 2)
    assert (found[:16:2] // 2).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert found[16:].tolist() == [16, 17, 18]
    assert found.sort().values.tolist() == order.tolist()


@pytest.mark.parametrize("num_frames", range(1, 20))
def test_every_number_of_frames_is_only_rearranged(num_frames):
    order = torch.randperm(num_frames * 3 + 5)
    found = spread_frames(order, num_frames, 3)
    assert sorted(found.tolist()) == sorted(order.tolist())
    assert found[num_frames * 3 :].tolist() == order[num_frames * 3 :].tolist()


def test_a_small_part_of_dycokes_whole_frames_reaches_the_end_of_the_video():
    grid = TokenGrid(32, 2, 2)
    tokens = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    plan = plan_fusion(tokens, grid, FusionConfig(method="dycoke"))
    frames = (plan.storage_index[:16] // 4).unique().tolist()
    assert frames == [0, 8, 16, 24]


def test_shares_that_no_fingerprint_spells_out_never_change():
    shares = {name: method.budget for name, method in METHODS.items() if method.budget is not None}
    assert shares == {
        "evs": 0.30,
        "vidcom2": 0.25,
        "tome": 0.30,
        "uniform": 1 / 3,
        "random": 1 / 3,
    }


def test_a_fraction_that_is_whole_in_decimals_is_whole():
    grid = TokenGrid(4, 5, 5)
    tokens = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    for hundredths in range(1, 101):
        config = FusionConfig(method="random", budget=hundredths / 100)
        assert plan_fusion(tokens, grid, config).num_kept == hundredths
