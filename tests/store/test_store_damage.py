"""Every way a cache can be wrong on disk, done to real files."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store import fragment_checks
from pipeline.store.fragment import fragment_file, pack_fragment
from pipeline.store.verify import verify_cache
from schemas.errors import (
    BoundsError,
    CacheCorruptError,
    CacheError,
    ChecksumError,
    DtypeError,
    FingerprintError,
    FormatVersionError,
    IndexCorruptError,
    ShapeError,
    ShardMissingError,
    ShardNameError,
    TokenreelError,
)
from schemas.index import INDEX_SCHEMA
from tests.store.sample_cache import MANIFEST, build, fragment_of, make_sample, shard_of


@pytest.fixture
def row(tmp_path):
    (row,) = build(tmp_path, make_sample().pending("v"))
    return row


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def forge(root: Path, row, **changes) -> None:
    """Put a fragment of one row with ``changes`` in the place of the committed one."""
    record = {**row.to_record(), **changes}
    table = pa.Table.from_pylist([record], schema=INDEX_SCHEMA)
    pq.write_table(table, fragment_of(root))


def forged_layout(row, name: str, /, **changes) -> list[dict]:
    return [{**spec, **changes} if spec["name"] == name else spec for spec in row_layout(row)]


def row_layout(row) -> list[dict]:
    return row.to_record()["layout"]


def load_error(root: Path) -> TokenreelError:
    with pytest.raises(TokenreelError) as error:
        open_cache(root).load("v")
    return error.value


@pytest.mark.parametrize(
    "tensor",
    ["row_digest", "score", "grid_index", "prompt_index", "input_ids", "position_ids", "match"],
)
def test_a_flipped_bit_in_any_tensor_of_the_head_is_a_checksum_error(tmp_path, row, tensor):
    flip(shard_of(tmp_path), row.offset + row.layout[tensor].offset + 5)
    error = load_error(tmp_path)
    assert type(error) is ChecksumError
    assert "the head has digest" in str(error)


def test_a_flipped_bit_in_the_padding_of_the_head_is_a_checksum_error(tmp_path, row):
    assert row.layout["pad"].num_bytes > 0
    flip(shard_of(tmp_path), row.offset + row.layout["pad"].offset)
    assert type(load_error(tmp_path)) is ChecksumError


@pytest.mark.parametrize("bad_row", [0, 17, 39])
def test_a_flipped_bit_in_the_features_is_a_checksum_error_naming_the_row(tmp_path, row, bad_row):
    flip(shard_of(tmp_path), row.offset + row.layout.head_bytes + bad_row * 48 + 47)
    error = load_error(tmp_path)
    assert type(error) is ChecksumError
    assert f"'v' in {shard_of(tmp_path)}: feature row {bad_row} has digest" in str(error)


def test_a_damaged_header_leaves_our_reader_alone_and_is_found_by_verify(tmp_path, row):
    position = shard_of(tmp_path).read_bytes().index(b'"BF16"')
    flip(shard_of(tmp_path), position + 1)
    open_cache(tmp_path).load("v")
    (finding,) = verify_cache(open_storage(tmp_path))
    assert finding.kind == "damaged_shard"
    assert "not safetensors" in finding.error


def test_a_header_that_describes_other_tensors_is_found_by_verify(tmp_path, row):
    data = shard_of(tmp_path).read_bytes()
    shard_of(tmp_path).write_bytes(data.replace(b'"shape":[40,24]', b'"shape":[24,40]'))
    (finding,) = verify_cache(open_storage(tmp_path))
    assert "does not list 'features' of video 'v'" in finding.error


@pytest.mark.parametrize("cut", [1, 1000, 10_000])
def test_a_truncated_shard_is_a_bounds_error(tmp_path, row, cut):
    size = shard_of(tmp_path).stat().st_size
    os.truncate(shard_of(tmp_path), max(0, size - cut))
    assert type(load_error(tmp_path)) is BoundsError


def test_a_shard_that_shrinks_while_it_is_read_is_a_short_read(tmp_path, row):
    from pipeline.store.reader import open_video
    from schemas.errors import ShortReadError

    with open_video(open_storage(tmp_path), row, fingerprint=MANIFEST.fingerprint) as reader:
        os.truncate(shard_of(tmp_path), row.offset + row.layout.head_bytes + 100)
        with pytest.raises(ShortReadError, match="1820 bytes early"):
            reader.read_rows(40, memoryview(bytearray(40 * 48)))


def test_a_missing_shard_is_named(tmp_path, row):
    shard_of(tmp_path).unlink()
    error = load_error(tmp_path)
    assert type(error) is ShardMissingError
    assert row.shard in str(error)


def test_a_symbolic_link_in_place_of_a_shard_is_not_followed(tmp_path, row):
    path = shard_of(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    error = load_error(tmp_path)
    assert type(error) is ShardMissingError
    assert "symbolic link" in str(error)


def test_a_pipe_in_place_of_a_shard_does_not_hang_the_reader(tmp_path, row):
    path = shard_of(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert type(load_error(tmp_path)) is ShardMissingError


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "", "../" + "a" * 64],
)
def test_a_shard_name_that_is_no_digest_is_never_opened(tmp_path, row, name):
    forge(tmp_path, row, shard=name)
    assert type(load_error(tmp_path)) is ShardNameError


@pytest.mark.parametrize("offset", [-64, 0, 1, 4097, 4096 + 2**20, 2**62])
def test_an_offset_outside_the_file_or_the_alignment_is_a_bounds_error(tmp_path, row, offset):
    forge(tmp_path, row, offset=offset)
    assert type(load_error(tmp_path)) is BoundsError


def test_an_aligned_offset_that_is_not_the_videos_is_a_checksum_error(tmp_path):
    first, second = build(
        tmp_path, make_sample().pending("u", key="d" * 64), make_sample(seed=1).pending("v")
    )
    forge(tmp_path, second, offset=first.offset)
    assert type(load_error(tmp_path)) is ChecksumError


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("features", {"dtype": "F8_E4M3"}, DtypeError),
        ("features", {"dtype": "U8"}, DtypeError),
        ("features", {"dtype": "F16"}, ShapeError),
        ("score", {"dtype": "I32"}, DtypeError),
        ("features", {"shape": [24, 40]}, ShapeError),
        ("features", {"shape": [2**40, 24]}, ShapeError),
        ("features", {"shape": [-40, 24]}, ShapeError),
        ("features", {"shape": [960]}, ShapeError),
        ("features", {"offset": 0}, BoundsError),
        ("match", {"shape": [59]}, BoundsError),
        ("score", {"name": "scores"}, ShapeError),
    ],
)
def test_a_layout_that_is_not_of_format_1_is_refused(tmp_path, row, name, changes, error):
    forge(tmp_path, row, layout=forged_layout(row, name, **changes))
    assert type(load_error(tmp_path)) is error


def test_a_row_that_promises_a_terabyte_is_refused_before_memory_is_taken(tmp_path, row):
    rows = 2**31
    specs = []
    position = 0
    for spec in row.layout:
        per_row = ("row_digest", "score", "grid_index", "prompt_index", "features")
        shape = (rows, *spec.shape[1:]) if spec.name in per_row else spec.shape
        specs.append(replace(spec, shape=shape, offset=position))
        position = specs[-1].end
    record = [
        {**old, "shape": list(s.shape), "offset": s.offset}
        for old, s in zip(row_layout(row), specs, strict=True)
    ]
    forge(tmp_path, row, layout=record, num_bytes=position, tokens_after=rows)
    assert type(load_error(tmp_path)) is BoundsError


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tokens_after": 39}, ShapeError),
        ({"num_bytes": 64}, ShapeError),
        ({"hidden_size": 9}, ShapeError),
        ({"num_deepstack": 1}, ShapeError),
        ({"grid_frames": 4}, ShapeError),
        ({"grid_frames": 0}, CacheCorruptError),
        ({"grid_frames": None}, ShapeError),
        ({"dtype": "F32"}, ShapeError),
        ({"fingerprint": "e" * 64}, FingerprintError),
        ({"format_version": 2}, FormatVersionError),
        ({"head_digest": 1}, ChecksumError),
        ({"head_digest": None}, IndexCorruptError),
        ({"layout": None}, IndexCorruptError),
        ({"layout": []}, CacheCorruptError),
        ({"next_position": None}, IndexCorruptError),
        ({"status": "fine"}, IndexCorruptError),
    ],
)
def test_a_row_that_contradicts_itself_or_the_cache_is_refused(tmp_path, row, changes, error):
    forge(tmp_path, row, **changes)
    assert isinstance(load_error(tmp_path), error)


@pytest.mark.parametrize(
    ("tensor", "value"), [("grid_index", 60), ("prompt_index", 49), ("match", 60)]
)
def test_indices_out_of_range_are_refused_though_their_digest_is_right(
    tmp_path, row, tensor, value
):
    import xxhash

    with shard_of(tmp_path).open("r+b") as shard:
        shard.seek(row.offset + row.layout[tensor].offset)
        shard.write(value.to_bytes(4, "little"))
        shard.seek(row.offset)
        digest = xxhash.xxh3_64_intdigest(shard.read(row.layout.head_bytes))
    forge(tmp_path, row, head_digest=digest)
    error = load_error(tmp_path)
    assert type(error) is BoundsError
    assert tensor in str(error)


def test_bytes_that_are_no_parquet_are_refused_naming_the_fragment(tmp_path, row):
    data = fragment_of(tmp_path).read_bytes()
    for damaged in (b"", b"no parquet", data[: len(data) // 2], data[:-9] + bytes(9)):
        fragment_of(tmp_path).write_bytes(damaged)
        with pytest.raises(IndexCorruptError, match=fragment_of(tmp_path).stem):
            open_cache(tmp_path)


@pytest.mark.parametrize("position", range(8, 4000, 133))
def test_a_flipped_bit_in_a_fragment_never_loads_other_features(tmp_path, row, position):
    good = open_cache(tmp_path).load("v").features
    flip(fragment_of(tmp_path), position)
    try:
        loaded = open_cache(tmp_path).load("v").features
    except TokenreelError:
        return
    assert loaded.equal(good)


def test_a_fragment_without_a_column_or_with_another_type_is_refused(tmp_path, row):
    table = pq.read_table(fragment_of(tmp_path))
    pq.write_table(table.drop_columns(["shard"]), fragment_of(tmp_path))
    with pytest.raises(IndexCorruptError, match="column 'shard' is missing"):
        open_cache(tmp_path)
    place = table.schema.get_field_index("offset")
    changed = table.set_column(place, "offset", table["offset"].cast(pa.string()))
    pq.write_table(changed, fragment_of(tmp_path))
    with pytest.raises(IndexCorruptError, match="column 'offset' is string, expected int64"):
        open_cache(tmp_path)
    forge(tmp_path, row, created_ns=None)
    with pytest.raises(IndexCorruptError, match="'created_ns' holds 1 nulls"):
        open_cache(tmp_path)


def test_a_fragment_that_unpacks_to_too_much_is_refused_unread(tmp_path, row, monkeypatch):
    monkeypatch.setattr(fragment_checks, "MAX_ROW_GROUP_BYTES", 2**25)
    bomb = pa.table({"video_id": pa.array([b"a" * 2**20] * 33, pa.binary())})
    pq.write_table(bomb, fragment_of(tmp_path), compression="zstd", use_dictionary=False)
    assert fragment_of(tmp_path).stat().st_size < 2**20
    with pytest.raises(IndexCorruptError, match="unpacks to"):
        open_cache(tmp_path)


def test_files_that_are_not_fragments_are_not_read(tmp_path, row):
    (tmp_path / "index" / "notes.parquet").write_bytes(b"mine")
    (tmp_path / "index" / ".abc.tmp").write_bytes(b"half")
    assert len(open_cache(tmp_path)) == 1


def test_a_row_of_another_cache_does_not_hide_the_rest(tmp_path, row):
    other = make_sample(seed=3).pending("w", key="b" * 64)
    (stranger,) = build(tmp_path, other)
    stranger = replace(stranger, fingerprint="e" * 64)
    name = hashlib.sha256(b"copied").hexdigest()
    (tmp_path / fragment_file(name)).write_bytes(pack_fragment([replace(stranger, video_id="x")]))
    cache = open_cache(tmp_path)
    cache.load("v")
    with pytest.raises(FingerprintError):
        cache.load("x")


def test_a_manifest_of_another_version_or_edited_is_refused(tmp_path, row):
    path = tmp_path / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(FormatVersionError, match="reads 1"):
        open_cache(tmp_path)
    path.write_text(text.replace('"threshold": 0.7', '"threshold": 0.6'))
    with pytest.raises(IndexCorruptError, match="changed after it was written"):
        open_cache(tmp_path)
    for damaged in (b"{", b"\xff\xfe", b"[]", b" " * (2**20 + 1)):
        path.write_bytes(damaged)
        with pytest.raises(IndexCorruptError):
            open_cache(tmp_path)


def test_verify_says_nothing_of_a_sound_cache_and_names_each_damage(tmp_path):
    rows = build(
        tmp_path,
        *(make_sample(seed=n).pending(f"{n}", key=f"{n}" * 64) for n in range(4)),
    )
    assert list(verify_cache(open_storage(tmp_path))) == []
    flip(shard_of(tmp_path), rows[1].offset + rows[1].layout.head_bytes)
    flip(shard_of(tmp_path), rows[2].offset)
    (tmp_path / "shards" / f"{'f' * 64}.safetensors").write_bytes(b"orphan")
    (tmp_path / "shards" / ".abc.tmp").write_bytes(b"half a shard")
    findings = list(verify_cache(open_storage(tmp_path)))
    assert sorted((f.kind, f.video_id or "") for f in findings) == [
        ("damaged_video", "1"),
        ("damaged_video", "2"),
        ("orphan_shard", ""),
        ("temporary_file", ""),
    ]
    assert sum(finding.is_damage for finding in findings) == 2


def test_with_a_damaged_fragment_no_shard_is_called_an_orphan(tmp_path):
    build(tmp_path, make_sample(seed=0).pending("0", key="0" * 64))
    [fragment] = (tmp_path / "index").iterdir()
    fragment.write_bytes(b"no parquet")
    assert [finding.kind for finding in verify_cache(open_storage(tmp_path))] == [
        "damaged_fragment"
    ]


def forge_manifest(root: Path, section: str, name: str, value: object) -> None:
    """Change a field, and let the fingerprint fit."""
    body = json.loads((root / "manifest.json").read_text())
    body[section][name] = value
    covered = {key: body[key] for key in body if key not in ("about", "fingerprint")}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    body["fingerprint"] = hashlib.sha256(canonical.encode()).hexdigest()
    (root / "manifest.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("encoder", "hidden_size", "8"),
        ("encoder", "hidden_size", True),
        ("encoder", "hidden_size", 10**400),
        ("encoder", "model_type", None),
        ("encoder", "patches", [16, 2, 2]),
        ("preprocess", "image_mean", "abc"),
        ("preprocess", "image_mean", [0.5, 0.5]),
        ("preprocess", "image_std", [0.5, 0.5, float("inf")]),
        ("decode", "versions", {"pyav": 18}),
        ("fusion", "threshold", "0.7"),
        ("fusion", "budget", 10**400),
        ("sampling", "fps", [2]),
        ("about", "model", 1),
        ("about", "model", {}),
    ],
)
def test_a_manifest_with_a_value_of_another_type_is_refused(tmp_path, row, section, name, value):
    forge_manifest(tmp_path, section, name, value)
    with pytest.raises(IndexCorruptError, match=r"manifest\.json cannot be read"):
        open_cache(tmp_path)


def test_a_manifest_with_a_field_nobody_knows_or_nested_too_deep_is_refused(tmp_path, row):
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"about"', '"more": 1, "about"'))
    with pytest.raises(IndexCorruptError, match=r"fields \['more'\] are unknown"):
        open_cache(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(IndexCorruptError, match="not a tokenreel manifest"):
        open_cache(tmp_path)


@pytest.mark.parametrize("name", ["manifest", "fragment"])
def test_a_link_or_a_pipe_in_place_of_a_small_file_is_not_followed_or_waited_for(
    tmp_path, row, name
):
    path = tmp_path / "manifest.json" if name == "manifest" else fragment_of(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="not a regular file"):
        open_cache(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CacheError, match="not a regular file"):
        open_cache(tmp_path)
