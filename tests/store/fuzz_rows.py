"""Corruptions of index rows: forged values, layouts, digests and columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.store.buckets import pack_bucket
from pipeline.store.fragment import named_bucket
from schemas.index import INDEX_SCHEMA
from tests.store.fuzz_cache import Corruption
from tests.store.fuzz_json import HUGE

SELF_DESCRIPTION = (
    *("video_id", "grid_frames", "grid_height", "grid_width", "anchor_frame", "nested"),
    *("dtype", "hidden_size", "num_deepstack"),
)
"""What a row says of its video and no digest covers: it is taken at its word where it fits."""


def forge_row(c: Corruption) -> None:
    """One or two values of one row of a fragment."""
    path, records, record = _any_row(c)
    for _ in range(c.random.choice([1, 1, 1, 2])):
        name = c.random.choice([n for n in INDEX_SCHEMA.names if n != "layout"])
        value = c.random.choice(_values_like(c, name, records))
        c.is_forged |= name in SELF_DESCRIPTION
        record[name] = value
        c.say(path, f"{record['video_id']!r:.30} {name} = {value!r:.80}")
    _write_rows(path, records)


def forge_layout(c: Corruption) -> None:
    """The layout of a row, with its other numbers made to fit half of the time."""
    path, records, record = _any_row(c)
    layout = record["layout"] or [{"name": "features", "dtype": "BF16", "shape": [1], "offset": 0}]
    kind = c.random.choice(["dims", "dims", "rows", "rows", "offset", "name", "dtype", "list"])
    spec = c.random.choice(layout)
    value = c.random.choice([-1, 0, 1, 2, 7, 63, 2**16, 2**20, *HUGE, -(2**62), -(2**63), None])
    if kind == "dims" and spec["shape"]:
        spec["shape"][c.random.randrange(len(spec["shape"]))] = value
    elif kind == "rows":
        for other in layout:
            if other["name"] in ("row_digest", "score", "grid_index", "prompt_index", "features"):
                other["shape"] = [value, *other["shape"][1:]]
        record["tokens_after"] = value
    elif kind == "offset":
        spec["offset"] = value
    elif kind == "name":
        spec["name"] = c.random.choice(["features", "scale", "frame_end", "pad", "", None, "a\0b"])
    elif kind == "dtype":
        spec["dtype"] = c.random.choice(["U8", "F16", "F32", "F8_E4M3", "U64", "BF16", "", None])
    else:
        c.random.choice([layout.reverse, layout.clear, layout.pop, lambda: layout.append(spec)])()
    if c.random.random() < 0.5:
        _refit(record, layout)
    record["layout"] = layout
    c.say(path, f"{record['video_id']!r} layout {kind} {spec.get('name')!r} {value}")
    _write_rows(path, records)


def _refit(record: dict[str, Any], layout: list[dict[str, Any]]) -> None:
    """Let offsets and ``num_bytes`` follow from the shapes, as far as they do."""
    sizes = {"U64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}
    position = 0
    for spec in layout:
        spec["offset"] = position
        count = sizes.get(spec["dtype"], 1)
        for side in spec["shape"]:
            count *= side or 0
        position = max(-(2**63), min(2**63 - 1, position + count))
    record["num_bytes"] = position


def forge_head(c: Corruption) -> None:
    """Bytes of a video's head, its digest made to fit: only what the numbers say is wrong."""
    path, records, record = _any_row(c)
    c.is_forged = True
    if not record["layout"]:
        return
    spec = c.random.choice([s for s in record["layout"] if s["name"] != "features"])
    shard = c.root / "shards" / f"{record['shard']}.safetensors"
    data = bytearray(shard.read_bytes())
    begin, length = record["offset"], record["layout"][-1]["offset"]
    for _ in range(c.random.choice([1, 1, 5])):
        item = 8 if spec["dtype"] in ("U64", "I64") else 4
        values = [0, 1, -1, 60, 2**15, 2**31 - 1, -(2**31), c.random.randrange(2**31)]
        value = c.random.choice(values + ([2**62, -(2**63)] if item == 8 else [0x7F800000]))
        at = begin + spec["offset"] + item * c.random.randrange(64)
        if at + item <= begin + length:
            data[at : at + item] = value.to_bytes(item, "little", signed=True)
    record["head_digest"] = xxhash.xxh3_64_intdigest(data[begin : begin + length])
    shard.write_bytes(data)
    _write_rows(path, records)
    c.say(shard, f"{record['video_id']!r} head tensor {spec['name']}, its digest made to fit")


def forge_table(c: Corruption) -> None:
    """The columns of a fragment: types, nulls, names, texts that are none, other writers' ways."""
    path, records, _ = _any_row(c)
    table = pa.Table.from_pylist(records, schema=INDEX_SCHEMA)
    name = c.random.choice(INDEX_SCHEMA.names)
    place = table.schema.get_field_index(name)
    count = table.num_rows
    kinds = [
        "drop",
        "twice",
        "type",
        "nulls",
        "bytes",
        "further",
        "empty",
        "rows",
        "order",
        "plain",
    ]
    kind = c.random.choice(kinds)
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "twice":
        table = table.append_column(name, table[name])
    elif kind == "type":
        table = table.set_column(place, name, _other_column(c, count))
    elif kind == "nulls":
        table = table.set_column(place, name, pa.nulls(count, table.schema.field(name).type))
    elif kind == "bytes" and pa.types.is_string(table.schema.field(name).type):
        raw = c.random.choice([b"\xff\xfe", b"a\x00b", b"\xed\xa0\x80", b"../\xff"])
        table = table.set_column(place, name, _raw_text([raw] * count))
    elif kind == "further":
        further = c.random.choice(["x", "", "a b", "Path", "video_id ", '"', "\0", "index"])
        table = table.append_column(further, _other_column(c, count))
    elif kind == "empty":
        table = table.slice(0, 0)
    elif kind == "rows":
        table = pa.concat_tables([table] * c.random.choice([2, 3]))
    elif kind == "order":
        table = table.select(list(reversed(table.column_names)))
    options: dict[str, Any] = {}
    if c.random.random() < 0.5:
        options = {"compression": c.random.choice(["none", "snappy", "gzip", "lz4", "brotli"])}
        options["data_page_version"] = c.random.choice(["1.0", "2.0"])
        options["use_dictionary"] = c.random.random() < 0.5
    pq.write_table(table, path, **options)
    c.say(path, f"{kind} {name} {options}")


def _other_column(c: Corruption, count: int) -> pa.Array:
    values = [
        pa.array([[1, 2]] * count),
        pa.array([{"a": 1}] * count),
        pa.array([b"\xff"] * count, pa.binary()),
        pa.array(["x"] * count),
        pa.array([True] * count),
        pa.array([2**62] * count),
        pa.array([float("nan")] * count),
        pa.array([0] * count, pa.timestamp("ns", "UTC")),
        pa.array([2**40] * count, pa.timestamp("s")),
        pa.array([1] * count, pa.uint64()),
        pa.nulls(count),
        _raw_text([b"\xff"] * count),
        pa.array(["x"] * count, pa.large_string()),
        pa.array(["x"] * count).dictionary_encode(),
        pa.array([1] * count, pa.decimal128(38, 2)),
    ]
    return c.random.choice(values)


def _raw_text(values: list[bytes]) -> pa.Array:
    """Text columns of bytes that are not UTF-8."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def _any_row(c: Corruption) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    path = c.random.choice(sorted(c.files("index/*"), key=lambda p: -p.stat().st_size)[:6])
    records = pq.read_table(path, schema=INDEX_SCHEMA).to_pylist()
    return path, records, c.random.choice(records)


def _write_rows(path: Path, records: list[dict[str, Any]]) -> None:
    for record in records:
        for name, kind in zip(INDEX_SCHEMA.names, INDEX_SCHEMA.types, strict=True):
            if record[name] is not None and pa.types.is_integer(kind):
                low, bits = (0, kind.bit_width) if "u" in str(kind) else (None, kind.bit_width - 1)
                low = -(2**bits) if low is None else low
                record[name] = max(low, min(2**bits - 1, record[name]))
    table = pa.Table.from_pylist(records, schema=INDEX_SCHEMA)
    if named_bucket(path.stem) is None:
        pq.write_table(table, path)
    else:
        path.write_bytes(pack_bucket(table))


def _values_like(c: Corruption, name: str, records: list[dict[str, Any]]) -> list[Any]:
    kind = INDEX_SCHEMA.field(name).type
    others = [record[name] for record in records]
    if name == "shard":
        digests = [path.stem for path in c.files("shards/*")]
        outside = str(c.root.parent / "outside" / "x")
        paths = ["../../outside/x", outside, "/etc/passwd", "..", ".", "/", "a\0b", "x" * 5000]
        return [*digests, *paths, "0" * 64, digests[0].upper(), digests[0] + "\n", "", None]
    if pa.types.is_string(kind):
        texts = ["", "x", "a\0b", "\n", "%s{0}", "../..", "ok", "failed", "damaged", "F32", "F16"]
        return [
            *others,
            *texts,
            "BF16",
            "none",
            "zstd",
            "fp8",
            "e" * 64,
            "y" * 10**6,
            None,
        ]
    if pa.types.is_boolean(kind):
        return [True, False, None]
    if pa.types.is_floating(kind):
        return [float("nan"), float("inf"), -1.0, 0.0, 1e308, None]
    return [*others, -1, 0, 1, 2, 64, 4096, *HUGE, -(2**31), -(2**63), None]
