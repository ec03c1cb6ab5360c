"""Every way encoded feature rows can be wrong on disk, done to real files."""

import os
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.verify import verify_cache
from schemas.errors import (
    BoundsError,
    CacheCorruptError,
    ChecksumError,
    DtypeError,
    IndexCorruptError,
    ShapeError,
    TokenreelError,
)
from schemas.index import INDEX_SCHEMA
from tests.store.encoded_cache import COMPACT, build, large_sample, stored_tensor
from tests.store.sample_cache import fragment_of, make_sample, shard_of


def flip(root, position):
    with shard_of(root).open("r+b") as shard:
        shard.seek(position)
        (byte,) = shard.read(1)
        shard.seek(position)
        shard.write(bytes([byte ^ 1]))


def forge_row(root, row, **changes):
    """Put a fragment of one row with ``changes`` in the place of the committed one."""
    table = pa.Table.from_pylist([{**row.to_record(), **changes}], schema=INDEX_SCHEMA)
    pq.write_table(table, fragment_of(root))


def forge_tensor(root, row, name, values):
    """Write other values into the head, and their digest into the index."""
    with shard_of(root).open("r+b") as shard:
        shard.seek(row.offset + row.layout[name].offset)
        shard.write(values.tobytes())
        shard.seek(row.offset)
        digest = xxhash.xxh3_64_intdigest(shard.read(row.layout.head_bytes))
    forge_row(root, row, head_digest=digest)


def load_error(root):
    with pytest.raises(TokenreelError) as error:
        open_cache(root).load("0")
    (finding,) = verify_cache(open_storage(root))
    assert finding.kind == "damaged_video"
    return error.value


@pytest.mark.parametrize(
    ("encoding", "tensor"),
    [
        ("zstd", "row_digest"),
        ("zstd", "frame_end"),
        ("zstd", "pad"),
        ("fp8", "row_digest"),
        ("fp8", "scale"),
        ("fp8", "pad"),
    ],
)
def test_a_flipped_bit_in_a_tensor_of_the_head_is_a_checksum_error(tmp_path, encoding, tensor):
    (row,) = build(tmp_path, encoding, make_sample(text_columns=10))
    assert row.layout[tensor].num_bytes
    flip(tmp_path, row.offset + row.layout[tensor].end - 1)
    error = load_error(tmp_path)
    assert type(error) is ChecksumError
    assert "the head has digest" in str(error)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("encoding", COMPACT)
def test_a_flipped_bit_in_the_rows_is_a_checksum_error_naming_them(tmp_path, encoding, part):
    (row,) = build(tmp_path, encoding, large_sample())
    features = row.layout["features"]
    flip(tmp_path, row.offset + features.offset + int(part * features.num_bytes))
    error = load_error(tmp_path)
    assert type(error) is ChecksumError
    assert f"video '0' in {shard_of(tmp_path)}: feature row" in str(error)
    assert "tokenreel verify" in str(error)


def test_every_flipped_byte_of_compressed_rows_is_a_checksum_error(tmp_path):
    sample = make_sample(num_rows=3, num_deepstack=0)
    (row,) = build(tmp_path, "zstd", sample)
    data = shard_of(tmp_path).read_bytes()
    begin = row.offset + row.layout.head_bytes
    cache = open_cache(tmp_path)
    for position in range(begin, row.offset + row.num_bytes):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        shard_of(tmp_path).write_bytes(damaged)
        with pytest.raises(ChecksumError):
            cache.load("0")


@pytest.mark.parametrize("encoding", COMPACT)
def test_a_truncated_shard_is_a_bounds_error(tmp_path, encoding):
    build(tmp_path, encoding, make_sample())
    os.truncate(shard_of(tmp_path), shard_of(tmp_path).stat().st_size - 1)
    assert type(load_error(tmp_path)) is BoundsError


@pytest.mark.parametrize(
    "forge",
    [
        lambda ends: ends - ends[0],
        lambda ends: ends[::-1].copy(),
        lambda ends: ends + 2**40,
        lambda ends: ends + 1,
        lambda ends: np.append(ends[:-1], ends[-1] - 1),
        lambda ends: np.append(ends[:-1], ends[-1] + 1),
        lambda ends: np.append(ends[:-1], 2**63 - 1),
        lambda ends: ends - 2**62 - 2**62,
    ],
)
def test_a_forged_frame_end_is_refused_with_little_memory(tmp_path, forge):
    (row,) = build(tmp_path, "zstd", large_sample())
    ends = stored_tensor(tmp_path, row, "frame_end")
    forge_tensor(tmp_path, row, "frame_end", forge(ends))
    tracemalloc.start()
    try:
        error = load_error(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert type(error) is BoundsError
    assert "video '0' in" in str(error)


def test_frame_ends_in_wrong_places_are_a_checksum_error(tmp_path):
    (row,) = build(tmp_path, "zstd", large_sample())
    ends = stored_tensor(tmp_path, row, "frame_end").copy()
    ends[2] += 1
    forge_tensor(tmp_path, row, "frame_end", ends)
    assert type(load_error(tmp_path)) is ChecksumError


@pytest.mark.parametrize("value", [0.0, -1.0, 1e38, float("inf"), float("nan")])
def test_a_forged_scale_is_refused_when_it_is_used(tmp_path, value):
    (row,) = build(tmp_path, "fp8", make_sample())
    scale = stored_tensor(tmp_path, row, "scale").copy()
    scale[3, 1] = value
    forge_tensor(tmp_path, row, "scale", scale)
    with pytest.raises(BoundsError, match="video '0': scales are"):
        open_cache(tmp_path).load("0")


@pytest.mark.parametrize("hidden_size", [7, 9, 2**14, 2**20, 2**31 - 1, 0, -8])
def test_compressed_rows_of_another_width_are_refused_with_little_memory(tmp_path, hidden_size):
    (row,) = build(tmp_path, "zstd", make_sample())
    forge_row(tmp_path, row, hidden_size=hidden_size)
    peak = pa.default_memory_pool().max_memory()
    error = load_error(tmp_path)
    assert isinstance(error, ChecksumError | BoundsError | ShapeError)
    assert pa.default_memory_pool().max_memory() - peak < 2**27


@pytest.mark.parametrize("dtype", ["U8", "F8_E4M3", "zstd", None])
@pytest.mark.parametrize("encoding", COMPACT)
def test_a_row_whose_features_are_of_no_feature_type_is_refused(tmp_path, encoding, dtype):
    (row,) = build(tmp_path, encoding, make_sample())
    forge_row(tmp_path, row, dtype=dtype)
    assert type(load_error(tmp_path)) is DtypeError


def test_compressed_rows_of_a_wider_type_are_a_checksum_error(tmp_path):
    (row,) = build(tmp_path, "zstd", make_sample())
    forge_row(tmp_path, row, dtype="F32")
    assert type(load_error(tmp_path)) is ChecksumError


@pytest.mark.parametrize(
    ("encoding", "name", "changes", "error"),
    [
        ("zstd", "frame_end", {"name": "frames"}, CacheCorruptError),
        ("zstd", "frame_end", {"dtype": "U64"}, DtypeError),
        ("zstd", "frame_end", {"name": "scale"}, CacheCorruptError),
        ("zstd", "features", {"dtype": "F8_E4M3"}, DtypeError),
        ("zstd", "features", {"shape": [1]}, ShapeError),
        ("zstd", "features", {"shape": [0]}, ShapeError),
        ("fp8", "scale", {"name": "scales"}, CacheCorruptError),
        ("fp8", "scale", {"shape": [3, 40]}, ShapeError),
        ("fp8", "scale", {"shape": [120]}, ShapeError),
        ("fp8", "scale", {"dtype": "I32"}, DtypeError),
        ("fp8", "features", {"dtype": "U8"}, DtypeError),
        ("fp8", "features", {"dtype": "BF16"}, DtypeError),
        ("fp8", "features", {"shape": [24, 40]}, ShapeError),
        ("fp8", "features", {"shape": [960]}, ShapeError),
    ],
)
def test_a_layout_that_is_not_of_its_encoding_is_refused(tmp_path, encoding, name, changes, error):
    (row,) = build(tmp_path, encoding, make_sample())
    specs = row.to_record()["layout"]
    layout = [{**spec, **changes} if spec["name"] == name else spec for spec in specs]
    forge_row(tmp_path, row, layout=layout)
    assert isinstance(load_error(tmp_path), error)


@pytest.mark.parametrize("said", ["none", "fp8", "int8", None])
def test_a_row_that_names_another_encoding_than_its_layout_is_refused(tmp_path, said):
    (row,) = build(tmp_path, "zstd", make_sample())
    forge_row(tmp_path, row, encoding=said)
    error = load_error(tmp_path)
    assert type(error) is IndexCorruptError
    assert f"encoding {said!r}, its layout is of 'zstd'" in str(error)
