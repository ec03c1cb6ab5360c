"""The golden caches, read by a reader that knows nothing but docs/format.md."""

import ast
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray

from tests.store import independent_reader
from tests.store.independent_reader import FormatError, IndependentCache, choose_rows, unpack

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/expected.json"))
TENSORS = ("features", "coordinates", "score", "input_ids", "position_ids", "visual_index", "match")

every_golden_cache = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def digest(array: NDArray[Any], dtype: str = "") -> str:
    """sha256 of the type as torch names it, shape and bytes."""
    about = f"torch.{dtype or array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(about + array.tobytes()).hexdigest()


@every_golden_cache
def test_a_reader_written_from_the_document_finds_the_golden_rows(folder: Path):
    cache = IndependentCache(folder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    columns = expected["rows"][0].keys()
    rows = [{name: row[name] for name in columns} for _, row in sorted(cache.rows.items())]
    assert cache.manifest["fingerprint"] == expected["fingerprint"]
    assert rows == expected["rows"]


@every_golden_cache
def test_a_reader_written_from_the_document_loads_the_golden_tensors(folder: Path):
    cache = IndependentCache(folder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    found = {}
    for entry in expected["loads"]:
        video_id, asked = entry.split(" {")
        video = cache.load(video_id, **json.loads("{" + asked))
        found[entry] = {name: digest(getattr(video, name)) for name in TENSORS}
        found[entry] |= {"tokens": len(video.features), "next_position": video.next_position}
        for name in ("input_ids", "visual_index"):  # the pipeline hands indices out as int64
            found[entry][name] = digest(getattr(video, name).astype("<i8"))
        if cache.rows[video_id]["dtype"] == "BF16":
            found[entry]["features"] = digest(video.features, "bfloat16")
    assert found == expected["loads"]


def test_every_row_of_a_bucket_fragment_belongs_there():
    rows = IndependentCache(GOLDEN / "bf16-none-buckets").rows.values()
    buckets = {row["video_id"]: row["fragment"][:-65] for row in rows if len(row["fragment"]) > 64}
    assert len(buckets) == 4
    for video_id, bucket in buckets.items():
        assert xxhash.xxh3_64_digest(video_id.encode())[:1].hex() == bucket


@every_golden_cache
def test_a_flipped_byte_anywhere_in_a_range_is_found(folder: Path, tmp_path: Path):
    root = tmp_path / "cache"
    shutil.copytree(folder, root)
    cache = IndependentCache(root)
    row = next(row for row in cache.rows.values() if row["status"] == "ok")
    shard = root / "shards" / f"{row['shard']}.safetensors"
    whole = shard.read_bytes()
    for place in range(row["offset"], row["offset"] + row["num_bytes"], 97):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FormatError):
            cache.load(row["video_id"])


def test_rows_come_out_of_several_zstd_frames(tmp_path: Path):
    N, W, b = 101, 6, 4
    rows = np.random.default_rng(0).integers(0, 256, (N, W * b)).astype("u1")
    codec, path, frame_end = pa.Codec("zstd"), tmp_path / "features", []
    with path.open("wb") as file:
        for first in range(0, N, 48):
            planes = rows[first : first + 48].reshape(-1, b).T
            file.write(b"".join(codec.compress(plane.tobytes(), asbytes=True) for plane in planes))
            frame_end.append(file.tell())
    row = {"video_id": "a", "tokens_after": N, "layout": [{"shape": [frame_end[-1]]}]}
    for n in (1, 48, 49, 96, 101):
        with path.open("rb") as file:
            assert np.array_equal(unpack(file, row, frame_end, n, W, b), rows[:n])


def row(status: str, created_ns: int, content: str | None = "A", **changes: Any) -> dict[str, Any]:
    facts = {"status": status, "created_ns": created_ns, "content_sha256": content}
    return {"video_id": "v", "shard": None, "writer": "w", "fragment": "f", **facts, **changes}


@pytest.mark.parametrize(
    ("rows", "wins"),
    [
        ([row("ok", 1), row("ok", 2)], 1),
        ([row("ok", 1), row("failed", 2)], 0),
        ([row("ok", 1), row("quarantined", 2, None)], 0),
        ([row("ok", 1), row("failed", 2, "B")], 1),
        ([row("ok", 1), row("damaged", 2)], 1),
        ([row("ok", 1), row("damaged", 2), row("failed", 3)], 2),
        ([row("ok", 1), row("damaged", 2), row("ok", 3), row("failed", 4)], 2),
        ([row("ok", 1, shard="a"), row("failed", 1, "B", fragment="z")], 0),
        ([row("ok", 1, shard="a", fragment="z"), row("ok", 1, shard="b")], 1),
        ([row("ok", 1, writer="x", fragment="f"), row("ok", 1, fragment="g")], 0),
        ([row("damaged", 1), row("quarantined", 1, "B")], 1),
        ([row("failed", 1, None), row("failed", 1, "B")], 1),
        ([row("ok", 1, attempts=2, key=None), row("ok", 1, attempts=1, key="k")], 0),
        ([row("ok", 1, attempts=2, key=None), row("ok", 1, attempts=2, key="k")], 1),
    ],
)
def test_one_row_of_a_video_wins_by_the_rule_of_the_document(rows: list[dict[str, Any]], wins: int):
    for order in (rows, rows[::-1]):
        assert choose_rows(order)["v"] is rows[wins]


def test_the_reader_shares_nothing_with_the_project():
    tree = ast.parse(Path(independent_reader.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "pyarrow", "xxhash"}
