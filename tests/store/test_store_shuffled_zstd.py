import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.shuffled_zstd import (
    MOST_SHRUNK,
    check_frame_end,
    compress_rows,
    decompress_frame,
    prefix_bytes,
)
from schemas.errors import BoundsError, CacheCorruptError, ChecksumError, ShapeError
from schemas.tokens import FRAME_ROWS

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def normal(num_rows, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator).to(dtype)


ANY_ROWS = st.sampled_from([1, 2, FRAME_ROWS - 1, FRAME_ROWS, FRAME_ROWS + 1, 2 * FRAME_ROWS, 131])


def as_rows(features):
    return features.view(torch.uint8).numpy()


def unpack(blob, frame_end, num_stored, num_wanted, row_bytes, item_bytes):
    """The first ``num_wanted`` of the stored rows, frame by frame, as bytes."""
    check_frame_end(frame_end, num_stored=num_stored, row_bytes=row_bytes, item_bytes=item_bytes)
    frames = []
    for frame, first in enumerate(range(0, num_wanted, FRAME_ROWS)):
        start = frame_end[frame - 1] if frame else 0
        values = decompress_frame(
            memoryview(blob)[start : frame_end[frame]],
            num_rows=min(FRAME_ROWS, num_stored - first),
            row_bytes=row_bytes,
            item_bytes=item_bytes,
        )
        frames.append(values.view(np.uint8))
    return np.concatenate(frames)[:num_wanted]


@settings(max_examples=80, deadline=None)
@given(
    num_rows=ANY_ROWS,
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from(["normal", "zeros", "any bits"]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_prefix_of_compressed_rows_comes_back_exactly_from_its_own_bytes(
    num_rows, width, dtype, spread, seed, data
):
    rows = as_rows(normal(num_rows, width, dtype, seed))
    random = np.random.default_rng(seed)
    if spread == "zeros":
        rows = np.zeros_like(rows)
    elif spread == "any bits":
        rows = random.integers(0, 256, rows.shape, dtype=np.uint8)
    wanted = data.draw(st.integers(1, num_rows))
    blob, frame_end = compress_rows(rows, dtype.itemsize)
    assert len(frame_end) == -(-num_rows // FRAME_ROWS)
    assert frame_end[-1] == len(blob)
    prefix = blob[: prefix_bytes(frame_end, wanted)]
    assert len(prefix) == frame_end[(wanted - 1) // FRAME_ROWS]
    out = unpack(prefix, frame_end, num_rows, wanted, rows.shape[1], dtype.itemsize)
    assert np.array_equal(out, rows[:wanted])


def test_a_prefix_that_ends_with_a_frame_needs_no_byte_of_the_next():
    rows = as_rows(normal(3 * FRAME_ROWS, 8, torch.bfloat16))
    _, frame_end = compress_rows(rows, 2)
    assert prefix_bytes(frame_end, FRAME_ROWS) == frame_end[0]
    assert prefix_bytes(frame_end, FRAME_ROWS + 1) == frame_end[1]
    assert prefix_bytes(frame_end, 3 * FRAME_ROWS) == frame_end[2]


def test_equal_rows_compress_to_equal_bytes_whatever_memory_they_lie_in():
    features = normal(100, 24, torch.bfloat16)
    wide = np.zeros((100, 64), dtype=np.uint8)
    wide[:, :48] = as_rows(features)
    one, two = compress_rows(as_rows(features), 2), compress_rows(wide[:, :48], 2)
    assert one[0] == two[0]
    assert np.array_equal(one[1], two[1])


def test_normal_bfloat16_rows_shrink_by_more_than_two_fifths():
    rows = as_rows(normal(FRAME_ROWS, 2048, torch.bfloat16))
    blob, _ = compress_rows(rows, 2)
    assert rows.nbytes / len(blob) > 1.4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, FRAME_ROWS, FRAME_ROWS + 1])
def test_the_longest_frames_pass_the_check_of_frame_ends(num_rows, dtype):
    random = np.random.default_rng(0)
    for width in (1, 3, 100, 3000):
        shape = (num_rows, width * dtype.itemsize)
        rows = random.integers(0, 256, shape, dtype=np.uint8)
        blob, frame_end = compress_rows(rows, dtype.itemsize)
        assert len(blob) > rows.nbytes
        check_frame_end(
            frame_end, num_stored=num_rows, row_bytes=shape[1], item_bytes=dtype.itemsize
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_inverted_byte_is_a_checksum_error_or_gives_other_rows(dtype):
    rows = as_rows(normal(FRAME_ROWS + 2, 12, dtype))
    blob, frame_end = compress_rows(rows, dtype.itemsize)
    outcomes = []
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 0xFF
        try:
            out = unpack(damaged, frame_end, *rows.shape[:1], *rows.shape, dtype.itemsize)
        except ChecksumError:
            outcomes.append("error")
        else:
            assert not np.array_equal(out, rows), position
            outcomes.append("other rows")
    assert set(outcomes) == {"error", "other rows"}


@settings(max_examples=200, deadline=None)
@given(ends=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3))
def test_any_frame_ends_are_refused_or_bounded_by_the_shape(ends):
    shape = {"num_stored": 2 * FRAME_ROWS + 1, "row_bytes": 64, "item_bytes": 2}
    try:
        check_frame_end(np.array(ends), **shape)
    except CacheCorruptError:
        return
    assert 0 < ends[0] < ends[1] < ends[2] <= 2 * (shape["num_stored"] * 64 + 3 * 128)


@pytest.mark.parametrize("bytes_per_row", [3, 0])
def test_rows_that_are_not_whole_values_are_refused(bytes_per_row):
    with pytest.raises(ShapeError, match="2 or 4"):
        compress_rows(np.zeros((4, bytes_per_row), dtype=np.uint8), 2)


@pytest.mark.parametrize(
    ("shape", "item_bytes"), [((0, 8), 2), ((4, 8), 1), ((4, 8), 8), ((8,), 2)]
)
def test_what_is_not_a_table_of_values_is_refused(shape, item_bytes):
    with pytest.raises(ShapeError):
        compress_rows(np.zeros(shape, dtype=np.uint8), item_bytes)


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4))
def test_no_damage_ends_in_another_error_than_a_checksum_error(flips):
    rows = as_rows(normal(FRAME_ROWS + 9, 64, torch.bfloat16))
    blob, frame_end = compress_rows(rows, 2)
    damaged = bytearray(blob)
    for position, bits in flips:
        damaged[position % len(blob)] ^= bits
    try:
        out = unpack(damaged, frame_end, len(rows), *rows.shape, 2)
    except ChecksumError:
        assert damaged != blob
    else:
        assert out.shape == rows.shape
        assert np.array_equal(out, rows) or damaged != blob


@pytest.mark.parametrize("num_rows", [19, 21])
def test_a_frame_that_decompresses_to_more_or_fewer_rows_is_a_checksum_error(num_rows):
    blob, _ = compress_rows(as_rows(normal(20, 64, torch.bfloat16)), 2)
    with pytest.raises(ChecksumError, match=f"{num_rows} rows cannot be decompressed"):
        decompress_frame(blob, num_rows=num_rows, row_bytes=128, item_bytes=2)


def test_a_small_frame_that_holds_far_more_than_its_rows_is_refused_without_the_memory():
    bomb, _ = compress_rows(np.zeros((FRAME_ROWS, 2**20), dtype=np.uint8), 2)
    assert len(bomb) < 2**14
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(ChecksumError):
        decompress_frame(bomb, num_rows=FRAME_ROWS, row_bytes=2**10, item_bytes=2)
    assert pa.default_memory_pool().max_memory() - peak < 2**20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, FRAME_ROWS])
def test_the_shortest_frames_pass_the_check_and_shorter_ones_do_not(num_rows, dtype):
    for width in (1, 3000, 10**6):
        shape = (num_rows, width * dtype.itemsize)
        blob, frame_end = compress_rows(np.zeros(shape, dtype=np.uint8), dtype.itemsize)
        claims = {"num_stored": num_rows, "item_bytes": dtype.itemsize}
        check_frame_end(frame_end, row_bytes=shape[1], **claims)
        too_wide = (len(blob) * MOST_SHRUNK // dtype.itemsize + MOST_SHRUNK) * dtype.itemsize
        with pytest.raises(BoundsError, match="expected"):
            check_frame_end(frame_end, row_bytes=too_wide, **claims)


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (lambda ends: ends[:-1], ShapeError),
        (lambda ends: np.append(ends, ends[-1] + 1), ShapeError),
        (lambda ends: ends.astype(np.float64), ShapeError),
        (lambda ends: ends.astype(np.int32), ShapeError),
        (lambda ends: ends[:, None], ShapeError),
        (lambda ends: ends - ends[0], BoundsError),
        (lambda ends: ends[::-1].copy(), BoundsError),
        (lambda ends: np.repeat(ends[0], len(ends)), BoundsError),
        (lambda ends: ends + 2**40, BoundsError),
        (lambda ends: ends * 2**20, BoundsError),
        (lambda ends: np.add(ends, [0, 0, 2**16]), BoundsError),
        (lambda ends: np.array([1, 2, 2**63 - 1]), BoundsError),
        (lambda ends: np.array([-(2**63), 1, 2]), BoundsError),
        (lambda ends: np.array([2**63 - 1, -(2**63), 5]), BoundsError),
    ],
)
def test_a_forged_frame_end_is_refused_with_little_memory(forge, error):
    rows = as_rows(normal(2 * FRAME_ROWS + 5, 4096, torch.bfloat16))
    _, frame_end = compress_rows(rows, 2)
    forged = forge(frame_end)
    tracemalloc.start()
    try:
        with pytest.raises(error):
            check_frame_end(forged, num_stored=len(rows), row_bytes=8192, item_bytes=2)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()
