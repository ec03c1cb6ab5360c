import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pipeline.cache import open_cache
from pipeline.store.head import Head
from schemas.errors import BoundsError, CacheError, DtypeError, ShapeError
from schemas.grid import TokenGrid
from tests.store.sample_cache import build, make_sample, shard_of

KEY = "a" * 64


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    hidden_size=st.integers(1, 33),
    num_deepstack=st.integers(0, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    text_columns=st.integers(0, 70),
    seed=st.integers(0, 2**16),
)
def test_a_packed_head_reads_back_equal_and_features_begin_at_64_bytes(
    num_rows, hidden_size, num_deepstack, dtype, text_columns, seed
):
    sample = make_sample(
        num_rows=num_rows,
        hidden_size=hidden_size,
        num_deepstack=num_deepstack,
        dtype=dtype,
        text_columns=text_columns,
        seed=seed,
    )
    record = sample.record(KEY)
    assert record.layout.head_bytes % 64 == 0
    assert sum(len(memoryview(chunk).cast("B")) for chunk in record.chunks()) == (
        record.layout.num_bytes
    )
    head = Head.from_bytes(record.head, record.layout)
    for name in ("score", "grid_index", "prompt_index", "input_ids", "position_ids", "match"):
        found = torch.from_numpy(getattr(head, name).copy())
        assert torch.equal(found.to(sample.tensors[name].dtype), sample.tensors[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_deepstack", [0, 3])
@pytest.mark.parametrize("num_rows", [1, 60])
def test_a_committed_video_loads_bit_equal_in_prompt_order(
    tmp_path, dtype, num_deepstack, num_rows
):
    sample = make_sample(num_rows=num_rows, num_deepstack=num_deepstack, dtype=dtype)
    build(tmp_path, sample.pending("v.mp4"))
    video = open_cache(tmp_path).load("v.mp4")
    order = sample.prompt_order
    expected = sample.tensors["features"][order]
    assert video.features.dtype == dtype
    assert torch.equal(video.features.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(video.score, sample.tensors["score"][order])
    assert torch.equal(video.input_ids, sample.tensors["input_ids"])
    assert torch.equal(video.position_ids.long(), sample.tensors["position_ids"])
    assert torch.equal(video.visual_index, sample.tensors["prompt_index"][order])
    assert torch.equal(video.match.long(), sample.tensors["match"])
    assert torch.equal(video.embeddings, expected[:, :8])
    assert video.deepstack.shape == (num_deepstack, num_rows, 8)
    for layer in range(num_deepstack):
        assert torch.equal(video.deepstack[layer], expected[:, 8 * (layer + 1) : 8 * (layer + 2)])


def test_equal_input_gives_an_equal_shard_under_an_equal_name(tmp_path):
    for name in ("one", "two"):
        build(tmp_path / name, make_sample().pending("v.mp4"))
    one, two = shard_of(tmp_path / "one"), shard_of(tmp_path / "two")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_a_shard_of_many_videos_opens_with_stock_safetensors(tmp_path):
    samples = [make_sample(seed=n, num_rows=1 + 7 * n, hidden_size=3 + n) for n in range(5)]
    rows = build(tmp_path, *(s.pending(f"{n}.mp4", key=f"{n}" * 64) for n, s in enumerate(samples)))
    with safe_open(shard_of(tmp_path), framework="pt") as shard:
        for row, sample in zip(rows, samples, strict=True):
            stored = shard.get_tensor(f"{row.key}/features")
            assert torch.equal(stored, sample.tensors["features"])
            assert torch.equal(shard.get_tensor(f"{row.key}/score"), sample.tensors["score"])
            assert row.offset % 64 == 0
    data = shard_of(tmp_path).read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 4096 == 0


def test_two_ids_of_one_content_share_their_bytes(tmp_path):
    sample = make_sample()
    first, second = build(tmp_path, sample.pending("a.mp4"), sample.pending("copy of a.mp4"))
    assert (first.shard, first.offset) == (second.shard, second.offset)
    cache = open_cache(tmp_path)
    assert torch.equal(cache.load("a.mp4").features, cache.load("copy of a.mp4").features)


def test_one_key_with_two_contents_is_stored_twice_and_still_stock_safetensors(tmp_path):
    one, two = make_sample(seed=1), make_sample(seed=2)
    build(tmp_path, one.pending("a.mp4"), two.pending("b.mp4"))
    cache = open_cache(tmp_path)
    assert torch.equal(cache.load("b.mp4").features, two.tensors["features"][two.prompt_order])
    with safe_open(shard_of(tmp_path), framework="pt") as shard:
        assert f"{KEY}.2/features" in list(shard.keys())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_features_that_are_not_finite_are_refused_naming_the_row(dtype, bad):
    sample = make_sample(dtype=dtype)
    sample.tensors["features"][17, 3] = bad
    with pytest.raises(CacheError, match="feature row 17 holds NaN or infinity"):
        sample.record(KEY)


def test_the_largest_finite_values_are_stored():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sample = make_sample(dtype=dtype)
        sample.tensors["features"][0, 0] = torch.finfo(dtype).max
        sample.tensors["features"][1, 0] = torch.finfo(dtype).min
        stored = torch.from_numpy(sample.record(KEY).features).view(dtype)
        assert torch.equal(stored, sample.tensors["features"])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("features", torch.zeros(40, 24, dtype=torch.float64), DtypeError),
        ("features", torch.zeros(40), ShapeError),
        ("features", torch.zeros(0, 24), ShapeError),
        ("score", torch.zeros(40, dtype=torch.int64), DtypeError),
        ("score", torch.zeros(39), ShapeError),
        ("score", torch.full((40,), float("nan")), ShapeError),
        ("grid_index", torch.zeros(40, dtype=torch.int64), BoundsError),
        ("grid_index", torch.arange(40) + 21, BoundsError),
        ("grid_index", torch.arange(40) - 1, BoundsError),
        ("grid_index", torch.arange(40.0), DtypeError),
        ("prompt_index", torch.zeros(40, dtype=torch.int64), BoundsError),
        ("prompt_index", torch.arange(40) + 10, BoundsError),
        ("position_ids", torch.zeros(3, 48, dtype=torch.int64), ShapeError),
        ("input_ids", torch.full((49,), 2**31), DtypeError),
        ("match", torch.full((60,), 60), BoundsError),
        ("match", torch.full((60,), -2), BoundsError),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(name, value, error):
    sample = make_sample()
    sample.tensors[name] = value
    with pytest.raises(error):
        sample.record(KEY)


def test_rows_of_another_device_layout_are_stored_by_value():
    sample = make_sample()
    plain = sample.record(KEY)
    sample.tensors["features"] = sample.tensors["features"].t().contiguous().t()
    assert plain.features.tobytes() == sample.record(KEY).features.tobytes()


def test_a_grid_of_one_token_is_a_video(tmp_path):
    sample = make_sample(grid=TokenGrid(1, 1, 1), num_rows=1, text_columns=0)
    build(tmp_path, sample.pending("v.mp4", anchor_frame=0))
    assert open_cache(tmp_path).load("v.mp4").coordinates.tolist() == [[0, 0, 0]]
