import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.store.fp8 import MIN_SCALE, decode_fp8, encode_fp8
from schemas.errors import BoundsError, CacheError, DtypeError, ShapeError

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def normal(num_rows, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator).to(dtype)


def e4m3_values():
    """The 127 numbers from 0 to 448, by the definition of the format; the index is the code."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    subnormal = mantissa * 2.0**-9
    return np.where(exponent == 0, subnormal, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def nearest_code(values):
    """Code of the nearest e4m3 number, the even one of two; a loop-free search over midpoints."""
    table = e4m3_values()
    midpoints = (table[1:] + table[:-1]) / 2
    magnitude = np.abs(values.astype(np.float64))
    below, above = (np.searchsorted(midpoints, magnitude, side=side) for side in ("left", "right"))
    code = np.where(below % 2 == 0, below, above)
    return (code + 128 * np.signbit(values)).astype(np.uint8)


def decoded(codes, scale, dtype):
    out = torch.empty(codes.shape, dtype=dtype)
    decode_fp8(codes, scale, out)
    return out


def bits(values):
    return values.contiguous().view(torch.uint8)


@st.composite
def feature_rows(draw, dtypes=DTYPES):
    """Rows of wide and narrow range, with zeros, outlier channels and numbers near the limits."""
    dtype = draw(st.sampled_from(dtypes))
    num_layers, hidden_size = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    num_rows = draw(st.integers(1, 12))
    features = normal(num_rows, num_layers * hidden_size, torch.float64, draw(st.integers(0, 999)))
    spread = draw(st.sampled_from([0, 3, 20]))
    features *= torch.exp2(features.roll(1, 1) * spread)
    if draw(st.booleans()):
        features[:, draw(st.integers(0, features.shape[1] - 1))] *= 100
    if draw(st.booleans()):
        features[draw(st.integers(0, num_rows - 1))] = 0
    features *= 2.0 ** draw(st.sampled_from([0, -10, -24, -60, -117, -126, -149, 10, 60, 120]))
    limit = torch.finfo(dtype).max
    return features.clamp(-limit, limit).to(dtype), num_layers


@settings(max_examples=200, deadline=None)
@given(rows=feature_rows())
def test_codes_are_the_nearest_even_of_each_value_over_the_scale_of_its_layer(rows):
    features, num_layers = rows
    codes, scale = encode_fp8(features, num_layers)
    assert (codes.dtype, codes.shape) == (torch.uint8, features.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (len(features), num_layers))
    layers = features.float().numpy().reshape(len(features), num_layers, -1)
    expected = np.maximum(np.abs(layers).max(axis=2) / np.float32(448), np.float32(MIN_SCALE))
    assert np.array_equal(scale.numpy(), expected)
    quotients = (layers / expected[..., None]).reshape(features.shape)
    assert np.array_equal(codes.numpy(), nearest_code(quotients))
    assert ((codes & 0x7F) != 0x7F).all()


@settings(max_examples=200, deadline=None)
@given(rows=feature_rows())
def test_each_decoded_value_is_within_half_a_step_of_the_code_at_its_scale(rows):
    features, num_layers = rows
    codes, scale = encode_fp8(features, num_layers)
    values = features.double().view(len(features), num_layers, -1)
    steps = scale.double()[..., None]
    relative = (values.abs() / steps).clamp(min=2.0**-6)
    half_step = torch.exp2(relative.log2().floor() - 4) * steps
    found = decoded(codes, scale, torch.float32).double().view(values.shape)
    assert ((found - values).abs() <= half_step * (1 + 1e-5)).all()
    rounded = decoded(codes, scale, features.dtype).double().view(values.shape)
    finfo = torch.finfo(features.dtype)
    rounding = (finfo.eps / 2 * found.abs()).clamp(min=finfo.smallest_normal * finfo.eps / 2)
    assert ((rounded - values).abs() <= half_step * (1 + 1e-5) + rounding).all()


@settings(max_examples=200, deadline=None)
@given(rows=feature_rows([torch.bfloat16, torch.float32]))
def test_decoded_features_have_the_same_codes_again(rows):
    features, num_layers = rows
    codes, scale = encode_fp8(features, num_layers)
    again, scale_again = encode_fp8(decoded(codes, scale, features.dtype), num_layers)
    assert torch.equal(again, codes)
    assert torch.allclose(scale_again, scale, rtol=2**-23, atol=0)
    if features.dtype == torch.bfloat16:
        assert torch.equal(scale_again, scale)


@settings(max_examples=200, deadline=None)
@given(rows=feature_rows([torch.float16]))
def test_decoded_float16_features_have_the_same_codes_but_for_the_smallest_numbers(rows):
    features, num_layers = rows
    codes, scale = encode_fp8(features, num_layers)
    values = decoded(codes, scale, torch.float16)
    again, scale_again = encode_fp8(values, num_layers)
    assert torch.equal(scale_again, scale)
    assert torch.equal(again[values.abs() >= 2**-20], codes[values.abs() >= 2**-20])
    assert (again.int() - codes.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [MIN_SCALE, 1e-20, 0.003, 1.0, 97.3])
def test_all_codes_decode_to_the_product_with_their_scale_rounded_once_more(dtype, scale):
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F][None]
    table = torch.from_numpy(e4m3_values()).float()
    expected = torch.cat((table, -table))[None] * torch.tensor(scale)
    found = decoded(codes, torch.tensor([[scale]]), dtype)
    assert torch.equal(bits(found), bits(expected.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_possible_maximum_of_a_row_is_the_largest_code_and_comes_back_exactly(dtype):
    values = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite() & (values.float() >= 448 * MIN_SCALE)]
    pairs = torch.stack((values, -values), dim=1)
    codes, scale = encode_fp8(pairs, 1)
    assert codes.unique().tolist() == [126, 254]
    assert torch.equal(decoded(codes, scale, dtype), pairs)


@settings(max_examples=300, deadline=None)
@given(largest=st.floats(448 * MIN_SCALE, float(torch.finfo(torch.float32).max), width=32))
@example(largest=float(torch.finfo(torch.float32).max))
def test_no_float32_maximum_overflows_its_code_or_its_decoded_value(largest):
    row = torch.tensor([[largest, -largest]])
    codes, scale = encode_fp8(row, 1)
    assert codes.tolist() == [[126, 254]]
    assert torch.allclose(decoded(codes, scale, torch.float32), row, rtol=2**-23, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_of_their_sign(dtype):
    row = torch.tensor([[0.0, -0.0, 0.0, 0.0]], dtype=dtype)
    codes, scale = encode_fp8(row, 2)
    assert codes.tolist() == [[0, 128, 0, 0]]
    assert scale.tolist() == [[MIN_SCALE, MIN_SCALE]]
    assert torch.equal(bits(decoded(codes, scale, dtype)), bits(row))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outlier_channel_costs_only_its_own_layer_of_its_own_row(dtype):
    features = normal(6, 64, dtype)
    plain, plain_scale = encode_fp8(features, 4)
    features[2, 20] = 300.0
    codes, scale = encode_fp8(features, 4)
    touched = torch.zeros(6, 4, dtype=torch.bool)
    touched[2, 1] = True
    assert torch.equal(scale != plain_scale, touched)
    same = ~touched.repeat_interleave(16, dim=1)
    assert torch.equal(codes[same], plain[same])
    others = torch.arange(16, 32) != 20
    found = decoded(codes, scale, torch.float32)[2, 16:32][others]
    wanted = features[2, 16:32][others].float()
    assert ((found - wanted).abs() <= wanted.abs() / 16 + 300 / 448 / 1024).all()


def test_a_row_has_the_same_codes_and_decoded_values_alone_and_among_others():
    features = normal(900, 2048, torch.bfloat16)
    codes, scale = encode_fp8(features, 4)
    for row in (0, 255, 256, 899):
        alone, alone_scale = encode_fp8(features[row : row + 1], 4)
        assert torch.equal(alone[0], codes[row])
        assert torch.equal(alone_scale[0], scale[row])
    one_by_one = torch.cat(
        [decoded(codes[n : n + 1], scale[n : n + 1], torch.bfloat16) for n in range(250, 260)]
    )
    assert torch.equal(one_by_one, decoded(codes, scale, torch.bfloat16)[250:260])


def test_features_in_any_memory_order_and_with_gradients_give_the_same_plain_rows():
    features = normal(30, 64, torch.float32)
    codes, scale = encode_fp8(features, 4)
    other, other_scale = encode_fp8(features.T.contiguous().T.requires_grad_(), 4)
    assert other.is_contiguous()
    assert not other_scale.requires_grad
    assert torch.equal(other, codes)
    assert torch.equal(other_scale, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_have_no_codes(dtype, bad):
    features = normal(40, 24, dtype)
    features[17, 3] = bad
    with pytest.raises(CacheError, match="feature row 17 holds NaN or infinity"):
        encode_fp8(features, 3)


@pytest.mark.parametrize("bad", [0.0, -1.0, MIN_SCALE / 2, 1e36, float("inf"), float("nan")])
def test_a_scale_that_no_features_have_is_refused(bad):
    codes, scale = encode_fp8(normal(4, 6, torch.bfloat16), 2)
    scale[1, 1] = bad
    with pytest.raises(BoundsError, match="scales are"):
        decoded(codes, scale, torch.bfloat16)


def test_scales_beyond_float16_are_refused_for_float16():
    codes, scale = encode_fp8(torch.full((1, 4), 70000.0), 1)
    with pytest.raises(BoundsError, match="features of another type"):
        decoded(codes, scale, torch.float16)


@pytest.mark.parametrize(
    ("features", "num_layers", "error"),
    [
        (torch.zeros(4, 6, dtype=torch.float64), 2, DtypeError),
        (torch.zeros(4, 6, dtype=torch.int32), 2, DtypeError),
        (torch.zeros(4, 6), 4, ShapeError),
        (torch.zeros(4, 6), 0, ShapeError),
        (torch.zeros(0, 6), 2, ShapeError),
        (torch.zeros(6), 1, ShapeError),
    ],
)
def test_what_is_not_rows_of_equal_layers_has_no_codes(features, num_layers, error):
    with pytest.raises(error):
        encode_fp8(features, num_layers)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"codes_NC": torch.zeros(4, 6, dtype=torch.int8)}, DtypeError),
        ({"scale_NL": torch.ones(4, 2, dtype=torch.float64)}, DtypeError),
        ({"out_NC": torch.zeros(4, 6, dtype=torch.float64)}, DtypeError),
        ({"codes_NC": torch.zeros(3, 6, dtype=torch.uint8)}, ShapeError),
        ({"scale_NL": torch.ones(3, 2)}, ShapeError),
        ({"scale_NL": torch.ones(4, 4)}, ShapeError),
        ({"scale_NL": torch.ones(4)}, ShapeError),
    ],
)
def test_codes_scales_and_output_that_do_not_fit_are_refused(changes, error):
    codes, scale = encode_fp8(normal(4, 6, torch.float32), 2)
    tensors = {"codes_NC": codes, "scale_NL": scale, "out_NC": torch.zeros(4, 6)}
    with pytest.raises(error):
        decode_fp8(**(tensors | changes))
