"""Means of groups against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.fusion.averages import weighted_means
from tests.fusion.sample_tokens import seeded

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BITS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}


def random_groups(num_tokens, num_groups, seed):
    """Groups named by one of their tokens, and weights that add up to 1 in each."""
    random = np.random.default_rng(seed)
    names = np.sort(random.permutation(num_tokens)[:num_groups])
    match = random.choice(names, num_tokens)
    match[names] = names
    shares = random.uniform(0.1, 1.0, num_tokens)
    totals = np.bincount(match, shares, minlength=num_tokens)
    weight = (shares / totals[match]).astype(np.float32)
    return torch.from_numpy(match), torch.from_numpy(weight), torch.from_numpy(names)


def loop_means(tokens, match, weight, rows):
    """The formula, token by token."""
    values, shares = tokens.double().numpy(), weight.double().numpy()
    means = []
    for group in rows.tolist():
        total, amount = np.zeros(values.shape[1:]), 0.0
        for index in np.flatnonzero(match.numpy() == group):
            total = total + shares[index] * values[index]
            amount += shares[index]
        means.append(total / amount)
    return torch.from_numpy(np.stack(means))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("sides", [(1,), (7,), (300,), (3, 5), (2, 3, 4), ()])
@pytest.mark.parametrize(("num_tokens", "num_groups"), [(40, 9), (40, 40), (200, 1), (1, 1)])
def test_means_are_those_of_the_plain_loops_rounded_once(num_tokens, num_groups, sides, dtype):
    tokens = (torch.randn(num_tokens, *sides, generator=seeded(1)) * 5 + 1).to(dtype)
    match, weight, rows = random_groups(num_tokens, num_groups, seed=len(sides))
    found = weighted_means(tokens, match, weight, rows)
    expected = loop_means(tokens, match, weight, rows)
    assert found.dtype == dtype
    assert found.shape == (num_groups, *sides)
    if dtype == torch.float64:
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    else:
        assert torch.equal(found, expected.to(dtype))


def test_rows_come_in_the_order_asked_and_only_those_asked():
    tokens = torch.randn(50, 6, generator=seeded(2))
    match, weight, names = random_groups(50, 12, seed=3)
    rows = names[torch.randperm(12, generator=seeded(4))][:7]
    found = weighted_means(tokens, match, weight, rows)
    assert torch.equal(found, loop_means(tokens, match, weight, rows).float())


@pytest.mark.parametrize("dtype", FLOATING)
def test_a_group_of_one_token_is_that_token_bit_for_bit(dtype):
    limits = torch.finfo(dtype)
    odd = [-0.0, 0.0, math.nan, math.inf, -math.inf, limits.max, limits.tiny, limits.tiny / 2, 1.1]
    tokens = torch.tensor([odd, odd, odd, odd[::-1]], dtype=dtype)
    match, weight = torch.tensor([0, 1, 1, 3]), torch.tensor([1.0, 0.5, 0.5, 1.0])
    found = weighted_means(tokens, match, weight, torch.tensor([3, 0]))
    assert torch.equal(found.view(BITS[dtype]), tokens[[3, 0]].view(BITS[dtype]))


def test_single_whole_numbers_beyond_the_precision_of_float64_are_unchanged():
    tokens = torch.tensor([[2**62 + 1], [2**53 + 1], [5], [9]])
    match, weight = torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, 1.0, 0.5, 0.5])
    found = weighted_means(tokens, match, weight, torch.tensor([0, 1, 2]))
    assert found.tolist() == [[2**62 + 1], [2**53 + 1], [7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [2, 3, 7, 49, 1000])
def test_the_mean_of_equal_tokens_is_that_token(length, dtype):
    token = torch.randn(64, generator=seeded(5)).to(dtype)
    match = torch.zeros(length, dtype=torch.int64)
    weight = torch.full((length,), 1 / length)
    found = weighted_means(token.expand(length, 64), match, weight, torch.tensor([0]))
    assert torch.equal(found[0], token)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("length", [257, 5000])
def test_groups_of_thousands_lose_nothing(length, dtype):
    tokens = (torch.randn(length, 33, generator=seeded(6)) + 3).to(dtype)
    match = torch.zeros(length, dtype=torch.int64)
    weight = torch.full((length,), 1 / length)
    found = weighted_means(tokens, match, weight, torch.tensor([0]))
    assert torch.equal(found[0], tokens.double().mean(dim=0).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_mean_of_the_largest_values_does_not_overflow(dtype):
    largest = torch.finfo(dtype).max
    tokens = torch.full((3, 2), largest, dtype=dtype)
    weight = torch.full((3,), 1 / 3)
    found = weighted_means(tokens, torch.zeros(3, dtype=torch.int64), weight, torch.tensor([0]))
    assert found.tolist() == [[largest, largest]]


def test_pictures_are_rounded_to_the_nearest_and_to_the_even_one_of_two():
    pictures = torch.tensor([[[0, 255]], [[1, 255]], [[3, 254]], [[4, 1]]], dtype=torch.uint8)
    match = torch.tensor([0, 0, 2, 2])
    found = weighted_means(pictures, match, torch.full((4,), 0.5), torch.tensor([0, 2]))
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[0, 255]], [[4, 128]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_whole_numbers_are_off_by_half_at_most(dtype):
    tokens = torch.randint(0, 256, (90, 4, 3, 2), generator=seeded(7)).to(dtype)
    match, weight, rows = random_groups(90, 17, seed=8)
    found = weighted_means(tokens, match, weight, rows)
    error = found.double() - loop_means(tokens, match, weight, rows)
    assert found.dtype == dtype
    assert 0 < error.abs().max() <= 0.5 + 1e-9


def test_a_mean_is_rounded_to_the_type_that_is_asked():
    tokens = torch.randn(30, 8, generator=seeded(9)).to(torch.bfloat16)
    match, weight, rows = random_groups(30, 11, seed=10)
    found = weighted_means(tokens, match, weight, rows, dtype=torch.float32)
    assert torch.equal(found, loop_means(tokens, match, weight, rows).float())


def test_only_the_proportions_of_the_weights_count():
    tokens = torch.randn(30, 8, generator=seeded(11))
    match, weight, rows = random_groups(30, 5, seed=12)
    found = weighted_means(tokens, match, weight * 4, rows)
    assert torch.equal(found, weighted_means(tokens, match, weight, rows))


@pytest.mark.parametrize(
    "view",
    [
        lambda wide: wide[:, :24],
        lambda wide: wide[:, ::2],
        lambda wide: wide.T.contiguous().T,
        lambda wide: wide.view(36, 6, 8).transpose(1, 2),
        lambda wide: wide[:, :1].expand(36, 5),
        lambda wide: wide.flip(0)[:, None],
    ],
)
def test_a_view_gives_the_means_of_its_copy_and_stays_unchanged(view):
    tokens = view(torch.randn(36, 48, generator=seeded(13)))
    before = tokens.clone()
    match, weight, rows = random_groups(36, 10, seed=14)
    found = weighted_means(tokens, match, weight, rows)
    assert torch.equal(found, weighted_means(before.contiguous(), match, weight, rows))
    assert torch.equal(tokens, before)


def test_tokens_of_no_width_have_means_of_no_width():
    match, weight, rows = random_groups(6, 2, seed=15)
    assert weighted_means(torch.zeros(6, 0, 3), match, weight, rows).shape == (2, 0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_neither_on_the_run_nor_on_the_number_of_threads(dtype):
    tokens = torch.randn(3000, 200, generator=seeded(16)).to(dtype)
    match, weight, rows = random_groups(3000, 400, seed=17)
    before = torch.get_num_threads()
    found = []
    try:
        for num_threads in (1, 2, 4, 1):
            torch.set_num_threads(num_threads)
            found.append(weighted_means(tokens, match, weight, rows))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_means_need_no_operation_that_torch_calls_nondeterministic():
    tokens = torch.randn(60, 8, generator=seeded(18))
    match, weight, rows = random_groups(60, 20, seed=19)
    expected = weighted_means(tokens, match, weight, rows)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(weighted_means(tokens, match, weight, rows), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32))
def test_a_mean_lies_between_the_values_of_its_group(num_tokens, num_groups, width, seed):
    tokens = torch.randn(num_tokens, width, generator=seeded(seed)).to(torch.bfloat16)
    match, weight, rows = random_groups(num_tokens, min(num_groups, num_tokens), seed)
    found = weighted_means(tokens, match, weight, rows)
    for group, mean in zip(rows.tolist(), found, strict=True):
        members = tokens[match == group]
        assert (members.amin(0) <= mean).all()
        assert (mean <= members.amax(0)).all()


class LargestTensor(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that an operation inside makes."""

    num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            given = {each.untyped_storage().data_ptr() for each in args if torch.is_tensor(each)}
            if result.untyped_storage().data_ptr() not in given:
                self.num_bytes = max(self.num_bytes, result.nbytes)
        return result


def test_temporaries_are_a_small_part_of_wide_tokens():
    tokens = torch.randn(4000, 4096, dtype=torch.float32, generator=seeded(20))
    match, weight, rows = random_groups(4000, 100, seed=21)
    with LargestTensor() as largest:
        weighted_means(tokens, match, weight, rows)
    assert 100 * 4096 * 4 <= largest.num_bytes <= tokens.nbytes / 15
