import dataclasses
import subprocess
import sys

import pytest
import torch

from pipeline.fusion import METHODS, plan_fusion
from pipeline.fusion.plan import FusionPlan
from schemas.errors import FusionError, GridMismatchError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

GRID = TokenGrid(2, 1, 3)


def make_plan(**changes):
    fields = {
        "method": "ttf",
        "grid": GRID,
        "keep_index": torch.tensor([0, 1, 2, 4, 5]),
        "match_index": torch.tensor([0, 1, 2, 0, 4, 5]),
        "score": torch.tensor([-torch.inf, -torch.inf, -torch.inf, 0.5, 0.2]),
        "storage_order": torch.tensor([0, 1, 2, 4, 3]),
        "nested": True,
        "anchor_frame": 0,
    }
    return FusionPlan(**{**fields, **changes})


def test_apply_gives_rows_of_anything_in_storage_order():
    plan = make_plan()
    pictures = torch.arange(6)[:, None, None].expand(6, 2, 2)
    assert plan.storage_index.tolist() == [0, 1, 2, 5, 4]
    assert plan.apply(pictures)[:, 0, 0].tolist() == [0, 1, 2, 5, 4]
    assert plan.apply(torch.arange(6)).tolist() == [0, 1, 2, 5, 4]
    assert plan.keep_ratio == 5 / 6


def test_apply_refuses_another_number_of_rows():
    with pytest.raises(GridMismatchError, match="found 5 visual tokens"):
        make_plan().apply(torch.zeros(5, 2))


def test_a_plan_prints_its_size_and_no_tensor():
    assert repr(make_plan()) == (
        "FusionPlan(method='ttf', grid=2x1x3, kept=5, keep_ratio=0.833, anchor_frame=0, "
        "nested=True, averages=False)"
    )


@pytest.mark.parametrize(
    ("field", "value", "law"),
    [
        ("keep_index", torch.tensor([0, 1, 2, 5, 4]), "keep_index ascends"),
        ("keep_index", torch.tensor([0, 1, 2, 4, 4]), "keep_index ascends"),
        ("keep_index", torch.tensor([-1, 1, 2, 4, 5]), "keep_index is in the grid"),
        ("keep_index", torch.tensor([0, 1, 2, 4, 6]), "keep_index is in the grid"),
        ("match_index", torch.tensor([0, 1, 2, 6, 4, 5]), "match_index is in the grid"),
        ("match_index", torch.tensor([0, 1, 2, 3, 4, 5]), "every match is kept"),
        ("match_index", torch.tensor([0, 0, 2, 0, 4, 5]), "stands for itself"),
        ("score", torch.tensor([0, 0, 0, 0, torch.nan]), "no score is NaN"),
        ("storage_order", torch.tensor([0, 1, 2, 4, 4]), "storage_order is a permutation"),
        ("storage_order", torch.tensor([0, 1, 2, 4, 5]), "storage_order is a permutation"),
        ("storage_order", torch.tensor([0, 1, 2]), r"of shape \(3,\), expected"),
        ("score", torch.zeros(5, dtype=torch.float64), r"expected torch\.float32"),
        ("anchor_frame", 2, "outside the 2 token frames"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(field, value, law):
    with pytest.raises(FusionError, match=law):
        make_plan(**{field: value})


def test_a_match_that_does_not_cover_the_grid_is_refused():
    with pytest.raises(GridMismatchError, match="match_index"):
        make_plan(match_index=torch.zeros(4, dtype=torch.int64))


def test_a_plan_that_keeps_nothing_is_refused():
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(FusionError, match="at least one token is kept"):
        make_plan(keep_index=nothing, storage_order=nothing, score=torch.zeros(0))


def test_every_configurable_method_has_a_record_and_a_planner_that_agree():
    tokens = torch.randn(GRID.num_tokens, 4, generator=torch.Generator().manual_seed(0))
    for name, method in METHODS.items():
        assert method.name == name
        plan = plan_fusion(tokens, GRID, FusionConfig(method=name))
        assert plan.method == name
        assert plan.nested == method.nested
        if method.budgeted:
            budgeted = plan_fusion(tokens, GRID, FusionConfig(method=name, budget=4))
            assert budgeted.num_kept == 4


def test_method_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["ttf"].nested = False


def test_reading_the_methods_does_not_import_torch():
    code = "import sys, pipeline.fusion; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
