"""Laws of temporal token fusion that hold for any tokens."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fusion import plan_fusion
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid
from tests.fusion.sample_tokens import plan_bytes

CASES = settings(max_examples=60, deadline=None)


@st.composite
def videos(draw):
    grid = TokenGrid(*(draw(st.integers(1, 6)) for _ in range(3)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    channels = draw(st.sampled_from([1, 3, 16, 40]))
    if draw(st.booleans()):
        values = torch.randint(-2, 3, (grid.num_tokens, channels), generator=generator)
    else:
        values = torch.randn(grid.num_tokens, channels, generator=generator)
    return values.to(dtype), grid


configs = st.builds(
    FusionConfig,
    threshold=st.floats(-0.99, 1.0),
    window=st.sampled_from([1, 3, 5, 7]),
)


@CASES
@given(videos(), configs)
def test_kept_tokens_ascend_hold_the_anchor_and_are_their_own_match(video, config):
    tokens, grid = video
    plan = plan_fusion(tokens, grid, config)
    kept = plan.keep_index.tolist()
    assert kept == sorted(set(kept))
    first = plan.anchor_frame * grid.tokens_per_frame
    assert set(range(first, first + grid.tokens_per_frame)) <= set(kept)
    assert set(plan.match_index.tolist()) <= set(kept)
    assert plan.match_index[plan.keep_index].tolist() == kept
    assert plan.keep_ratio == len(kept) / grid.num_tokens
    assert plan.apply(tokens).shape == (len(kept), tokens.shape[1])


@CASES
@given(videos(), configs)
def test_every_fused_token_is_more_alike_its_match_than_the_threshold(video, config):
    tokens, grid = video
    plan = plan_fusion(tokens, grid, config)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1, eps=1e-12)
    cosine = (unit * unit[plan.match_index]).sum(1)
    fused = torch.ones(grid.num_tokens, dtype=torch.bool)
    fused[plan.keep_index] = False
    assert (cosine[fused] > config.threshold - 2e-6).all()


@CASES
@given(videos(), configs)
def test_the_match_of_a_fused_token_is_in_its_window_of_the_anchor(video, config):
    tokens, grid = video
    plan = plan_fusion(tokens, grid, config)
    shape = (grid.frames, grid.height, grid.width)
    t, y, x = np.unravel_index(np.arange(grid.num_tokens), shape)
    frame, row, column = np.unravel_index(plan.match_index.numpy(), shape)
    fused = ~np.isin(np.arange(grid.num_tokens), plan.keep_index.numpy())
    assert (frame[fused] == plan.anchor_frame).all()
    assert (t[fused] != plan.anchor_frame).all()
    assert (np.abs(row - y)[fused] <= config.window // 2).all()
    assert (np.abs(column - x)[fused] <= config.window // 2).all()


@CASES
@given(videos(), configs, st.floats(-0.99, 1.0))
def test_a_lower_threshold_keeps_a_prefix_of_the_storage_order(video, config, other):
    tokens, grid = video
    lower, upper = sorted((config.threshold, other))
    narrow = plan_fusion(tokens, grid, FusionConfig(threshold=lower, window=config.window))
    wide = plan_fusion(tokens, grid, FusionConfig(threshold=upper, window=config.window))
    assert narrow.storage_index.tolist() == wide.storage_index[: narrow.num_kept].tolist()
    assert (wide.score[wide.storage_order].diff().nan_to_num(0) >= 0).all()


@CASES
@given(videos(), st.floats(0.01, 1.0), st.floats(-0.99, 1.0))
def test_a_budget_is_exact_and_a_prefix_of_keeping_all(video, fraction, threshold):
    tokens, grid = video
    num_kept = max(grid.tokens_per_frame, int(fraction * grid.num_tokens))
    plan = plan_fusion(tokens, grid, FusionConfig(budget=num_kept, threshold=threshold))
    everything = plan_fusion(tokens, grid, FusionConfig(budget=1.0))
    assert plan.num_kept == num_kept
    assert plan.storage_index.tolist() == everything.storage_index[:num_kept].tolist()


@CASES
@given(videos(), configs)
def test_the_same_bytes_give_the_same_plan(video, config):
    tokens, grid = video
    assert plan_bytes(plan_fusion(tokens, grid, config)) == plan_bytes(
        plan_fusion(tokens.clone(), grid, config)
    )


@CASES
@given(videos(), configs, st.integers(-20, 20))
def test_scaling_by_a_power_of_two_changes_no_bit_of_the_plan(video, config, exponent):
    tokens, grid = video
    tokens = tokens.float()
    scaled = plan_fusion(tokens * 2.0**exponent, grid, config)
    assert plan_bytes(scaled) == plan_bytes(plan_fusion(tokens, grid, config))


@CASES
@given(videos(), configs, st.randoms(use_true_random=False))
def test_permuting_channels_changes_scores_by_rounding_only(video, config, random):
    tokens, grid = video
    order = list(range(tokens.shape[1]))
    random.shuffle(order)
    keep_all = FusionConfig(budget=1.0, window=config.window)
    plan = plan_fusion(tokens, grid, keep_all)
    permuted = plan_fusion(tokens[:, order], grid, keep_all)
    if permuted.anchor_frame == plan.anchor_frame:
        torch.testing.assert_close(permuted.score, plan.score, atol=2e-6, rtol=0)
