"""A second reader of the cache, written from docs/format.md alone.

Letters are the document's: N stored tokens of a grid of G, L columns of the prompt, S deepstack
layers, D values per layer, W = (1+S)*D values per row, b bytes per value.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from math import floor, prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

Row = dict[str, Any]  # of the index, with the name of its fragment
Head = dict[str, NDArray[Any]]
Asked = float | None

FRAGMENT = re.compile(r"([0-9a-f]{2}-)?[0-9a-f]{64}\.parquet")
WIDTHS = {"U8": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8, "U64": 8}
NUMPY = {"U8": "u1", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U64": "<u8"}
NUMPY |= {"F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: its bits
LARGEST = {"BF16": 255 * 2.0**120, "F16": 65504.0, "F32": (2**24 - 1) * 2.0**104}
ROWS_PER_FRAME = 48
STEPS = [((e > 0) + m / 8) * 2.0 ** (max(e, 1) - 7) for e in range(16) for m in range(8)]
E4M3 = np.array([*STEPS[:-1], np.nan, *(-x for x in STEPS[:-1]), np.nan], "<f4")


class FormatError(ValueError):
    """Something in the cache is not as the document says."""


@dataclass(frozen=True)
class Video:
    """n tokens of a video, in prompt order, and its stretch of the prompt without the others."""

    features: NDArray[Any]  # (n, W) in the type of the encoder; bfloat16 as uint16 bits
    coordinates: NDArray[np.int32]  # (n, 3) t, y, x
    score: NDArray[np.float32]  # (n,)
    input_ids: NDArray[np.int32]  # (L - N + n,)
    position_ids: NDArray[np.int32]  # (3, L - N + n)
    visual_index: NDArray[np.int32]  # (n,) columns of input_ids where the tokens stand
    match: NDArray[np.int32]  # (G,) as stored, whatever n is
    next_position: int


class IndependentCache:
    """The manifest of a cache and the one row of every video."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.rows = choose_rows(read_index(folder / "index"))

    def load(self, video_id: str, budget: Asked = None, threshold: Asked = None) -> Video:
        """All tokens; or ``budget`` many, an int or a fraction of G; or those at a threshold."""
        row = self.rows[video_id]
        check(row, row["status"] == "ok", "status", row["status"])
        for name in "format_version", "fingerprint":
            check(row, row[name] == self.manifest[name], name, row[name])
        check(row, row["encoding"] == self.manifest["store"]["encoding"], "encoding")
        check_layout(row)
        path = self.folder / "shards" / f"{row['shard']}.safetensors"
        check(row, re.fullmatch("[0-9a-f]{64}", row["shard"]) is not None, "shard", path)
        check(row, path.is_file() and not path.is_symlink(), "shard", path)
        begin, end = row["offset"], row["offset"] + row["num_bytes"]
        check(row, 0 <= begin < end <= path.stat().st_size and begin % 64 == 0, "offset", begin)
        with path.open("rb") as shard:
            shard.seek(begin)
            head = read_head(shard, row)
            n = self.count(row, head, budget, threshold)
            return assemble(row, head, read_features(shard, row, head, n))

    def count(self, row: Row, head: Head, budget: Asked, threshold: Asked) -> int:
        N, G, fusion = row["tokens_after"], row["tokens_before"], self.manifest["fusion"]
        if budget is None and threshold is None:
            return N
        check(row, row["nested"], "nested", "a prefix of its rows is no budget")
        if threshold is None:
            return min(N, max(1, floor(budget * G + 1e-9) if isinstance(budget, float) else budget))
        if budget is not None or fusion["method"] != "ttf" or threshold > fusion["threshold"]:
            raise ValueError(f"no threshold {threshold} with budget {budget} and {fusion}")
        frame = head["grid_index"] // (row["grid_height"] * row["grid_width"])
        is_close = head["score"] <= np.float32(threshold)
        return int((is_close | (frame == row["anchor_frame"])).sum())


def read_manifest(folder: Path) -> Row:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["format_version"] != 1:
        raise FormatError(f"format_version is {manifest['format_version']}, not 1")
    body = {key: manifest[key] for key in manifest.keys() - {"about", "fingerprint"}}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != manifest["fingerprint"]:
        raise FormatError("manifest.json does not have the fingerprint it names")
    return manifest


def read_index(index: Path) -> list[Row]:
    """All rows of all fragments, once two listings of the folder agree."""
    paths: set[Path] | None = None
    rows: list[Row] = []
    while (listed := {file for file in index.iterdir() if FRAGMENT.fullmatch(file.name)}) != paths:
        paths = listed
        try:
            rows = [row for path in paths for row in read_fragment(path)]
        except FileNotFoundError:  # a compaction has replaced it
            paths = None
    return rows


def read_fragment(path: Path) -> list[Row]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return [{**row, "fragment": path.stem} for row in file.read().to_pylist()]


def choose_rows(rows: list[Row]) -> dict[str, Row]:
    """One row per video: the youngest of those that count."""
    by_video: dict[str, list[Row]] = {}
    for row in rows:
        by_video.setdefault(row["video_id"], []).append(row)
    return {name: max(rows_that_count(own), key=age) for name, own in by_video.items()}


def age(row: Row) -> list[tuple[bool, Any]]:
    """What rows of one video are ordered by: their columns, null first."""
    first = ["created_ns", "shard", "status", "content_sha256", "writer"]
    others = sorted(row.keys() - {*first, "layout", "fragment"})
    values = [row[name] for name in first + others]
    is_plain = [isinstance(value, str | int | float) for value in values]
    return [
        (value is not None, value if plain else json.dumps(value, sort_keys=True, default=str))
        for value, plain in zip(values, is_plain, strict=True)
    ]


def rows_that_count(rows: list[Row]) -> list[Row]:
    damaged = [row for row in rows if row["status"] == "damaged"]
    lost_before = max((row["created_ns"] for row in damaged), default=0)
    ok = [row for row in rows if row["status"] == "ok" and row["created_ns"] >= lost_before]
    known = {row["content_sha256"] for row in ok} | {None} if ok else set()
    failed = [row for row in rows if row["status"] in ("failed", "quarantined")]
    return ok + damaged + [row for row in failed if row["content_sha256"] not in known]


def check_layout(row: Row) -> None:
    """The layout has to be what the other columns imply, but for L and the bytes of zstd."""
    shapes = {tensor["name"]: tensor["shape"] for tensor in row["layout"]}
    N, G, layers = row["tokens_after"], row["tokens_before"], 1 + row["num_deepstack"]
    W, L = layers * row["hidden_size"], prod(shapes.get("input_ids", [0]))
    grid = [row[f"grid_{side}"] for side in ("frames", "height", "width")]
    check(row, 1 <= N <= min(G, L) and prod(grid) == G and min(grid) > 0, "sizes", (N, G, L, grid))
    check(row, min(layers, W) > 0 and row["dtype"] in LARGEST, "type of features", row["dtype"])
    F, Z = -(-N // ROWS_PER_FRAME), max(1, prod(shapes.get("features", [0])))
    extra, features = {
        "none": ([], ("features", row["dtype"], [N, W])),
        "zstd": ([("frame_end", "I64", [F])], ("features", "U8", [Z])),
        "fp8": ([("scale", "F32", [N, layers])], ("features", "F8_E4M3", [N, W])),
    }[row["encoding"]]
    expected = [("row_digest", "U64", [N]), *extra, ("score", "F32", [N])]
    expected += [(name, "I32", [N]) for name in ("grid_index", "prompt_index")]
    expected += [("input_ids", "I32", [L]), ("position_ids", "I32", [3, L]), ("match", "I32", [G])]
    num_bytes = sum(WIDTHS[dtype] * prod(shape) for _, dtype, shape in expected)
    expected += [("pad", "U8", [-num_bytes % 64]), features]
    offset = 0
    for found, wanted in zip(row["layout"], expected, strict=True):
        check(row, tuple(found.values()) == (*wanted, offset), "layout", found)
        offset += WIDTHS[found["dtype"]] * prod(found["shape"])
    check(row, row["num_bytes"] == offset, "num_bytes", row["num_bytes"])


def read_head(shard: BinaryIO, row: Row) -> Head:
    """All tensors before ``features``, which is where the shard then stands."""
    data = shard.read(row["layout"][-1]["offset"])
    check(row, xxhash.xxh3_64_intdigest(data) == row["head_digest"], "digest of the head")
    head = {}
    for name, dtype, shape, offset in map(dict.values, row["layout"][:-1]):
        head[name] = np.frombuffer(data, NUMPY[dtype], prod(shape), offset).reshape(shape)
    G, L = head["match"].size, head["input_ids"].size
    for name, low, end in ("grid_index", 0, G), ("prompt_index", 0, L), ("match", -1, G):
        values, counts = np.unique(head[name], return_counts=True)  # values ascend
        check(row, values[0] >= low and values[-1] < end and (low < 0 or counts.max() == 1), name)
    check(row, not np.isnan(head["score"]).any(), "score", "NaN")
    return head


def read_features(shard: BinaryIO, row: Row, head: Head, n: int) -> NDArray[Any]:
    """The first n rows in storage order, compared with their digests and decoded."""
    is_exact, W = row["encoding"] != "fp8", (1 + row["num_deepstack"]) * row["hidden_size"]
    b = WIDTHS[row["dtype"] if is_exact else "F8_E4M3"]
    if row["encoding"] == "zstd":
        stored = unpack(shard, row, head["frame_end"].tolist(), n, W, b)
    else:
        stored = np.frombuffer(shard.read(n * W * b), "u1").reshape(n, W * b)
    digests = [xxhash.xxh3_64_intdigest(data) for data in stored]
    check(row, digests == head["row_digest"][:n].tolist(), "digest of a row")
    return stored.view(NUMPY[row["dtype"]]) if is_exact else from_fp8(row, stored, head["scale"])


def unpack(shard: BinaryIO, row: Row, ends: list[int], n: int, W: int, b: int) -> NDArray[Any]:
    """Bytes of the first n rows; a frame holds first the lowest byte of all its values."""
    N, size = row["tokens_after"], row["layout"][-1]["shape"][0]
    check(row, ends[-1] == size, "end of the frames", ends[-1])
    heights = [min(ROWS_PER_FRAME, N - first) for first in range(0, N, ROWS_PER_FRAME)]
    frames = list(zip(heights, np.diff([0, *ends]).tolist(), strict=True))
    for h, size in frames:
        check(row, max(1, b * (h * W // 32768)) <= size, "bytes of a frame", size)
        check(row, size <= b * (h * W + h * W // 256 + 64), "bytes of a frame", size)
    rows = []
    for h, size in frames[: -(-n // ROWS_PER_FRAME)]:
        try:  # one call decompresses all b streams
            planes = pa.decompress(shard.read(size), b * h * W, "zstd", asbytes=True)
        except OSError as error:
            raise FormatError(f"{row['video_id']}: a frame does not decompress") from error
        rows.append(np.frombuffer(planes, "u1").reshape(b, h * W).T.reshape(h, W * b))
    return np.concatenate(rows)[:n]


def from_fp8(row: Row, codes: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[Any]:
    """``code * scale``, rounded to float32 and then to the type of the features."""
    in_range = (scale >= 2.0**-117) & (scale <= LARGEST[row["dtype"]] / 448)  # and no NaN
    check(row, bool(in_range.all()), "scale", "out of range")
    product = E4M3[codes] * np.repeat(scale[: len(codes)], row["hidden_size"], axis=1)
    if row["dtype"] == "BF16":  # the upper 16 bits, to the nearest, ties to even
        product = (product.view("<u4") + 0x7FFF + (product.view("<u4") >> 16 & 1)) >> 16
    return product.astype(NUMPY[row["dtype"]])


def assemble(row: Row, head: Head, features: NDArray[Any]) -> Video:
    """The tokens sorted by their columns, and the columns without those of the other tokens."""
    columns, others = np.split(head["prompt_index"], [len(features)])
    order = np.argsort(columns)
    stays = np.ones(head["input_ids"].size, dtype=bool)
    stays[others] = False
    grid = row["grid_frames"], row["grid_height"], row["grid_width"]
    places = np.unravel_index(head["grid_index"][order], grid)
    return Video(
        features=features[order],
        coordinates=np.stack(places, axis=1).astype("<i4"),
        score=head["score"][order],
        input_ids=head["input_ids"][stays],
        position_ids=head["position_ids"][:, stays],
        visual_index=np.cumsum(stays, dtype="<i4")[columns[order]] - 1,
        match=head["match"],
        next_position=row["next_position"],
    )


def check(row: Row, holds: bool, what: str, found: object = "not as expected") -> None:
    if not holds:
        raise FormatError(f"{row['video_id']}: {what}: {found}")
