"""Caches whose feature rows are stored with encoding "zstd" or "fp8"."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from click.testing import CliRunner
from safetensors import safe_open

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.store.fp8 import decode_fp8, encode_fp8
from pipeline.store.record import encode_record
from schemas.config_file import parse_config
from schemas.errors import (
    CacheMismatchError,
    ChecksumError,
    ConfigError,
    IndexCorruptError,
    ShapeError,
)
from schemas.grid import TokenGrid
from schemas.index import INDEX_SCHEMA
from schemas.manifest import Manifest, StoreIdentity
from schemas.tokens import ENCODINGS, FRAME_ROWS
from tests.storage.conftest import bucket, s3_server  # noqa: F401 - fixtures
from tests.store.encoded_cache import (
    COMPACT,
    DTYPES,
    build,
    expected_prefix,
    large_sample,
    same_bits,
    stored_tensor,
)
from tests.store.sample_cache import MANIFEST, failed_row, make_sample, shard_of

REPOSITORY = Path(__file__).parents[2]
KEY = "a" * 64


# Loading


@pytest.mark.parametrize("num_rows", [1, FRAME_ROWS, FRAME_ROWS + 1, 131])
@pytest.mark.parametrize("num_deepstack", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", COMPACT)
def test_an_encoded_video_loads_as_its_type_in_prompt_order(
    tmp_path, encoding, dtype, num_deepstack, num_rows
):
    grid = TokenGrid(3, 7, 7)
    sample = make_sample(grid=grid, num_rows=num_rows, num_deepstack=num_deepstack, dtype=dtype)
    build(tmp_path / encoding, encoding, sample)
    build(tmp_path / "none", "none", sample)
    video, plain = (open_cache(tmp_path / name).load("0") for name in (encoding, "none"))
    assert same_bits(video.features, expected_prefix(sample, encoding, num_rows))
    for name in ("coordinates", "score", "input_ids", "position_ids", "visual_index", "match"):
        assert torch.equal(getattr(video, name), getattr(plain, name)), name


def test_rounded_features_are_within_a_sixteenth_of_their_size_or_of_the_least_step(tmp_path):
    sample = large_sample()
    build(tmp_path, "fp8", sample)
    true = sample.tensors["features"][sample.prompt_order].float().view(500, 3, 128)
    found = open_cache(tmp_path).load("0").features.float().view(500, 3, 128)
    step = true.abs().amax(dim=2, keepdim=True) / 448 / 1024
    assert ((found - true).abs() <= true.abs() * (1 / 16 + 1 / 256) + step * 1.01).all()
    assert 0.02 < (found - true).norm() / true.norm() < 0.03


@pytest.mark.parametrize("encoding", COMPACT)
def test_an_encoded_cache_is_smaller_and_reads_no_more_than_it_holds(tmp_path, encoding):
    sample = large_sample()
    (row,) = build(tmp_path / encoding, encoding, sample)
    (plain,) = build(tmp_path / "none", "none", sample)
    assert row.layout["features"].num_bytes < 0.75 * plain.layout["features"].num_bytes
    assert open_cache(tmp_path / encoding).load("0").bytes_read == row.num_bytes


@pytest.mark.parametrize("budget", [1, FRAME_ROWS, FRAME_ROWS + 1, 100, 499])
@pytest.mark.parametrize("encoding", COMPACT)
def test_a_budget_reads_and_verifies_its_own_bytes_and_none_behind(tmp_path, encoding, budget):
    sample = large_sample()
    (row,) = build(tmp_path, encoding, sample)
    size = row.num_bytes - row.layout.head_bytes
    if encoding == "zstd":
        size = stored_tensor(tmp_path, row, "frame_end")[(budget - 1) // FRAME_ROWS]
    else:
        size = budget * row.row_width
    end = row.offset + row.layout.head_bytes + int(size)
    with shard_of(tmp_path).open("r+b") as shard:
        whole = shard.seek(0, os.SEEK_END)
        shard.truncate(end)
        shard.truncate(whole)
    cache = open_cache(tmp_path)
    video = cache.load("0", budget=budget)
    assert same_bits(video.features, expected_prefix(sample, encoding, budget))
    assert video.bytes_read == end - row.offset
    if end < row.offset + row.num_bytes:
        with pytest.raises(ChecksumError):
            cache.load("0")


@pytest.mark.parametrize("encoding", COMPACT)
def test_a_threshold_loads_the_rows_up_to_it(tmp_path, encoding):
    sample = make_sample()
    build(tmp_path, encoding, sample)
    count = 20 + int((sample.tensors["score"][20:] <= 0.4).sum())
    video = open_cache(tmp_path).load("0", threshold=0.4)
    assert same_bits(video.features, expected_prefix(sample, encoding, count))


@pytest.mark.parametrize("encoding", COMPACT)
def test_out_receives_decoded_features_and_keeps_its_other_rows(tmp_path, encoding):
    sample = make_sample()
    build(tmp_path, encoding, sample)
    cache = open_cache(tmp_path)
    out = torch.full((50, 24), 7.0, dtype=torch.bfloat16)
    video = cache.load("0", out=out)
    assert video.features.data_ptr() == out.data_ptr()
    assert same_bits(video.features, expected_prefix(sample, encoding, 40))
    assert (out[40:] == 7).all()
    with pytest.raises(ConfigError, match=r"at least 40 x 24 torch\.bfloat16"):
        cache.load("0", out=torch.zeros(40, 24, dtype=torch.uint8))


@pytest.mark.parametrize("encoding", COMPACT)
def test_large_encoded_videos_survive_each_other_and_move_to_a_device(tmp_path, encoding):
    samples = [make_sample(seed=n, grid=TokenGrid(4, 32, 32), num_rows=2100) for n in range(2)]
    samples = [wide(sample) for sample in samples]
    build(tmp_path, encoding, *samples)
    cache = open_cache(tmp_path)
    videos = [cache.load(name) for name in ("0", "1", "0", "1")]
    for video, sample in zip(videos, samples * 2, strict=True):
        assert same_bits(video.features, expected_prefix(sample, encoding, 2100))
    moved = cache.load("0", device="meta")
    assert {moved.features.device.type, moved.input_ids.device.type} == {"meta"}
    assert moved.features.shape == videos[0].features.shape


def wide(sample):
    """The sample with rows of 4096 values: features and codes beyond 4 MiB."""
    features = sample.tensors["features"].repeat(1, 128)
    sample.tensors["features"] = features + torch.arange(3072, dtype=features.dtype)
    return replace(sample, hidden_size=1024)


@pytest.mark.parametrize("encoding", COMPACT)
def test_equal_input_gives_an_equal_shard_under_an_equal_name(tmp_path, encoding):
    for name in ("one", "two"):
        build(tmp_path / name, encoding, make_sample())
    one, two = shard_of(tmp_path / "one"), shard_of(tmp_path / "two")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_the_encoding_none_leaves_the_record_as_it_is():
    record = make_sample().record(KEY)
    assert encode_record(record, "none", num_layers=3) is record


def test_a_record_is_encoded_in_the_known_ways_and_in_whole_layers_only():
    record = make_sample().record(KEY)
    with pytest.raises(ConfigError, match=r"expected one of \('none', 'zstd', 'fp8'\)"):
        encode_record(record, "int8", num_layers=3)
    with pytest.raises(ShapeError, match="L = 5"):
        encode_record(record, "fp8", num_layers=5)


# Other readers


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("none", {"features": (torch.bfloat16, (500, 384))}),
        ("zstd", {"frame_end": (torch.int64, (11,)), "features": (torch.uint8, None)}),
        (
            "fp8",
            {
                "scale": (torch.float32, (500, 3)),
                "features": (torch.float8_e4m3fn, (500, 384)),
            },
        ),
    ],
)
def test_stock_safetensors_shows_the_documented_tensors(tmp_path, encoding, expected):
    rows = build(tmp_path, encoding, large_sample(), large_sample(seed=1))
    head = ["row_digest", "score", "grid_index", "prompt_index", "input_ids", "position_ids"]
    own = [name for name in expected if name != "features"]
    names = [head[0], *own, *head[1:], "match", "pad", "features"]
    with safe_open(shard_of(tmp_path), framework="pt") as shard:
        for row in rows:
            assert [spec.name for spec in row.layout] == names
            assert row.layout.head_bytes % 64 == 0
            for name, (dtype, shape) in expected.items():
                tensor = shard.get_tensor(f"{row.key}/{name}")
                assert tensor.dtype == dtype
                assert tuple(tensor.shape) == (shape or (row.layout["features"].num_bytes,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compressed_rows_decode_by_the_text_of_the_format(tmp_path, dtype):
    sample = large_sample(dtype=dtype)
    (row,) = build(tmp_path, "zstd", sample)
    data = stored_tensor(tmp_path, row, "features").tobytes()
    ends = stored_tensor(tmp_path, row, "frame_end").tolist()
    frames = []
    for start, end in zip([0, *ends], ends, strict=False):
        with pa.CompressedInputStream(pa.py_buffer(data[start:end]), "zstd") as stream:
            planes = np.frombuffer(stream.read(), np.uint8).reshape(dtype.itemsize, -1)
        frames.append(planes.T.tobytes())
    assert len(frames[0]) == 48 * row.row_width * dtype.itemsize
    found = np.frombuffer(b"".join(frames), np.uint8).reshape(500, -1)
    assert np.array_equal(found, sample.tensors["features"].view(torch.uint8).numpy())
    digests = [xxhash.xxh3_64_intdigest(values) for values in found]
    assert stored_tensor(tmp_path, row, "row_digest").tolist() == digests


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_decode_by_the_text_of_the_format(tmp_path, dtype):
    sample = large_sample(dtype=dtype)
    (row,) = build(tmp_path, "fp8", sample)
    with safe_open(shard_of(tmp_path), framework="pt") as shard:
        codes = shard.get_tensor(f"{row.key}/features")
        scale = shard.get_tensor(f"{row.key}/scale")
    values = codes.float().view(500, 3, 128) * scale[..., None]
    found = values.view(500, 384).to(dtype)[sample.prompt_order]
    assert same_bits(found, open_cache(tmp_path).load("0").features)
    digests = [xxhash.xxh3_64_intdigest(row) for row in codes.view(torch.uint8).numpy()]
    assert stored_tensor(tmp_path, row, "row_digest").tolist() == digests


def test_checking_an_encoded_cache_never_imports_torch(tmp_path):
    for encoding in COMPACT:
        build(tmp_path / encoding, encoding, make_sample())
    script = (
        "import sys\n"
        "from pipeline.storage import open_storage\n"
        "from pipeline.store.verify import verify_cache\n"
        "for location in sys.argv[1:]:\n"
        "    assert not list(verify_cache(open_storage(location)))\n"
        "assert 'torch' not in sys.modules\n"
    )
    places = [str(tmp_path / encoding) for encoding in COMPACT]
    subprocess.run([sys.executable, "-c", script, *places], check=True, cwd=REPOSITORY, timeout=240)


# A build


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(["a.mp4", "b.mp4"]):
        write_scene_clip(root / name, seed=seed, seconds=2.0, width=128, height=96, fps=12)
    return root


def run_tokenreel(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def build_corpus(corpus, root, model, *flags):
    flags = ("--model", model, "--device", "cpu", *flags)
    done = run_tokenreel("build", corpus, "--out", root, *flags)
    assert done.exit_code == 0, done.output
    assert run_tokenreel("verify", root).exit_code == 0
    return open_cache(root)


def last_logits(video, tokenizer, model):
    inputs = video.prefill(tokenizer, "What moves?")
    with torch.inference_mode():
        return model(**inputs).logits[0, -1].float()


def test_a_build_with_each_encoding_answers_as_one_without(
    corpus, tmp_path, tiny_checkpoint, tiny_model, encoder
):
    caches = {
        encoding: build_corpus(corpus, tmp_path / encoding, tiny_checkpoint, *flags)
        for encoding, flags in {
            "none": (),
            "zstd": ("--encoding", "zstd"),
            "fp8": ("--encoding", "fp8"),
        }.items()
    }
    for video_id in ("a.mp4", "b.mp4"):
        videos = {encoding: cache.load(video_id) for encoding, cache in caches.items()}
        logits = {e: last_logits(v, encoder.tokenizer, tiny_model) for e, v in videos.items()}
        plain = videos["none"]
        assert same_bits(videos["zstd"].features, plain.features)
        assert torch.equal(logits["zstd"], logits["none"])
        codes, scale = encode_fp8(plain.features, 1 + plain.num_deepstack)
        decoded = torch.empty_like(plain.features)
        decode_fp8(codes, scale, decoded)
        assert same_bits(videos["fp8"].features, decoded)
        assert not torch.equal(logits["fp8"], logits["none"])
        assert torch.cosine_similarity(logits["fp8"], logits["none"], dim=0) > 0.99
        assert {e: v.row.encoding for e, v in videos.items()} == dict(
            zip(videos, videos, strict=True)
        )
        assert len({v.row.dtype for v in videos.values()}) == 1
    manifest = (tmp_path / "zstd" / "manifest.json").read_text()
    assert json.loads(manifest)["store"] == {"encoding": "zstd"}


def test_the_command_line_refuses_another_encoding_and_one_that_is_not_offered(
    corpus, tmp_path, tiny_checkpoint
):
    build_corpus(corpus, tmp_path / "c", tiny_checkpoint, "--encoding", "fp8")
    again = ("build", corpus, "--out", tmp_path / "c", "--model", tiny_checkpoint)
    refused = run_tokenreel(*again, "--device", "cpu")
    assert refused.exit_code == 1
    assert "store.encoding: cache has 'fp8', this build 'none'" in refused.output
    planned = run_tokenreel("plan", *again[1:])
    assert "store.encoding: cache has 'fp8', this build 'none'" in planned.output
    unknown = run_tokenreel(*again, "--encoding", "int8")
    assert unknown.exit_code == 2
    assert "'none', 'zstd', 'fp8'" in unknown.output


# An object store


@pytest.mark.parametrize(
    ("encoding", "budget", "expected"),
    [("none", 100, 1), ("zstd", None, 1), ("zstd", 100, 2), ("fp8", None, 1), ("fp8", 100, 1)],
)
def test_a_load_is_one_request_and_a_part_of_compressed_rows_two(
    bucket,  # noqa: F811 - the fixture
    encoding,
    budget,
    expected,
):
    sample = large_sample()
    build(bucket.url, encoding, sample)
    cache = open_cache(bucket.url)
    before = len(bucket.requests())
    video = cache.load("0", budget=budget)
    requests = bucket.requests()[before:]
    assert same_bits(video.features, expected_prefix(sample, encoding, budget or 500))
    ranges = [request.rpartition("bytes=")[2].split("-") for request in requests]
    assert len(ranges) == expected
    assert sum(int(last) + 1 - int(first) for first, last in ranges) == video.bytes_read


# Identity


def test_the_index_says_how_each_video_is_stored(tmp_path):
    manifest = replace(MANIFEST, store=StoreIdentity("zstd"))
    failure = failed_row("z", fingerprint=manifest.fingerprint)
    build(tmp_path, "zstd", make_sample(), also=[failure])
    columns = open_cache(tmp_path).query("SELECT dtype, encoding FROM index ORDER BY video_id")
    assert columns.to_pylist() == [
        {"dtype": "BF16", "encoding": "zstd"},
        {"dtype": None, "encoding": None},
    ]
    names = INDEX_SCHEMA.names
    assert names[names.index("dtype") + 1] == "encoding"


@pytest.mark.parametrize("other", COMPACT)
def test_a_cache_of_another_encoding_is_refused_naming_it(tmp_path, other):
    build(tmp_path, "none", make_sample())
    message = f"store.encoding: cache has 'none', this build '{other}'"
    with pytest.raises(CacheMismatchError, match=message):
        build(tmp_path, other, make_sample())


def test_the_manifest_keeps_the_encoding_and_each_has_a_fingerprint_of_its_own():
    manifests = [replace(MANIFEST, store=StoreIdentity(encoding)) for encoding in ENCODINGS]
    assert len({manifest.fingerprint for manifest in manifests}) == 3
    for manifest in manifests:
        assert Manifest.from_json(manifest.to_json(), source="here") == manifest
    unknown = manifests[1].to_json().replace('"zstd"', '"int8"')
    with pytest.raises(IndexCorruptError, match=r"here cannot be read.*'int8'.*'fp8'"):
        Manifest.from_json(unknown, source="here")


def test_an_encoding_that_is_not_offered_is_refused_listing_those_that_are():
    assert parse_config({"store": {"encoding": "fp8"}}).store.encoding == "fp8"
    assert parse_config({}).store.encoding == "none"
    with pytest.raises(ConfigError, match=r"'int8'.* one of \('none', 'zstd', 'fp8'\)"):
        parse_config({"store": {"encoding": "int8"}})
