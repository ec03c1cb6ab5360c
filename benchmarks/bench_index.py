"""How long opening a cache takes with many small fragments, and what compaction changes.

Run: python benchmarks/bench_index.py
Wall-clock seconds; opening is the median of the repeats, compaction runs once. Arrow's peak is the
most memory its tables took while compacting.
"""

import datetime as dt
import hashlib
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.fragment import INDEX_FOLDER, fragment_file, pack_table, rows_to_table
from pipeline.store.manifest import create_or_check
from schemas.config import FusionConfig, SamplingConfig
from schemas.grid import PatchGeometry
from schemas.index import IndexRow
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess
from schemas.tokens import RecordLayout, TensorSpec

CASES = ((100, 1000), (6250, 16), (1000, 1000))  # fragments, rows in each
REPEATS = 3

MANIFEST = Manifest(
    encoder=EncoderIdentity("bench", "0" * 64, "0" * 64, "BF16", 2048, 3, PatchGeometry(16, 2, 2)),
    sampling=SamplingConfig(),
    preprocess=ResolvedPreprocess(1, 2, False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    decode=DecoderIdentity("auto", {"pyav": "0"}),
    fusion=FusionConfig(),
)


@dataclass(frozen=True)
class Timing:
    open_before: float
    compact: float
    again: float
    open_after: float
    peak_bytes: int
    index_bytes: int


def main() -> None:
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions: kernel {platform.release()}, pyarrow {pa.__version__}")
    print(f"date: {dt.date.today()}  command: python benchmarks/bench_index.py")
    print(f"load average: {os.getloadavg()[0]:.1f}  repeats: {REPEATS}\n")
    print(
        "| fragments x rows | open s | compact s | again s | open s then | Arrow peak | on disk |"
    )
    print("|-|-|-|-|-|-|-|")
    for num_fragments, num_rows in CASES:
        with tempfile.TemporaryDirectory() as folder:
            fill_cache(Path(folder), num_fragments, num_rows)
            took = measure(Path(folder), num_fragments * num_rows)
        print(
            f"| {num_fragments} x {num_rows} | {took.open_before:.2f} | {took.compact:.2f} "
            f"| {took.again:.2f} | {took.open_after:.2f} | {took.peak_bytes / 2**20:.0f} MiB "
            f"| {took.index_bytes / 2**20:.0f} MiB |",
            flush=True,
        )


def measure(root: Path, num_videos: int) -> Timing:
    open_before = open_seconds(root, num_videos)
    started = time.perf_counter()
    report = compact_cache(open_storage(root))
    compact = time.perf_counter() - started
    assert (report.fragments_after, report.rows) == (1, num_videos)
    peak_bytes = pa.default_memory_pool().max_memory()
    started = time.perf_counter()
    compact_cache(open_storage(root))
    again = time.perf_counter() - started
    index_bytes = sum(path.stat().st_size for path in (root / INDEX_FOLDER).iterdir())
    return Timing(
        open_before, compact, again, open_seconds(root, num_videos), peak_bytes, index_bytes
    )


def open_seconds(root: Path, num_videos: int) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        assert len(open_cache(root)) == num_videos
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def fill_cache(root: Path, num_fragments: int, num_rows: int) -> None:
    """An index as builds leave it, without the shards: nothing here opens one."""
    create_or_check(open_storage(root), MANIFEST)
    (root / INDEX_FOLDER).mkdir()
    like = rows_to_table([committed_row()]).take(pa.array([0] * num_rows))
    for fragment in range(num_fragments):
        numbers = range(fragment * num_rows, (fragment + 1) * num_rows)
        name = digest(f"fragment {fragment}")
        columns = {
            "video_id": [f"folder{n % 97}/video{n:07}.mp4" for n in numbers],
            "path": [f"/data/corpus/folder{n % 97}/video{n:07}.mp4" for n in numbers],
            "content_sha256": [digest(f"content {n}") for n in numbers],
            "key": [digest(f"key {n}") for n in numbers],
            "shard": [digest(f"shard {fragment}")] * num_rows,
            "created_ns": [10**18 + n for n in numbers],
        }
        table = like
        for column, values in columns.items():
            place = table.schema.get_field_index(column)
            table = table.set_column(place, table.schema.field(column), pa.array(values))
        (root / fragment_file(name)).write_bytes(pack_table(table.sort_by("video_id")))


def committed_row() -> IndexRow:
    shapes = {
        "row_digest": ("U64", (1000,)),
        "score": ("F32", (1000,)),
        "grid_index": ("I32", (1000,)),
        "prompt_index": ("I32", (1000,)),
        "input_ids": ("I32", (1100,)),
        "position_ids": ("I32", (3, 1100)),
        "match": ("I32", (3136,)),
        "pad": ("U8", (0,)),
        "features": ("BF16", (1000, 8192)),
    }
    specs: list[TensorSpec] = []
    for name, (dtype, shape) in shapes.items():
        specs.append(TensorSpec(name, dtype, shape, specs[-1].end if specs else 0))
    layout = RecordLayout(tuple(specs))
    return IndexRow(
        video_id="",
        path="",
        status="ok",
        fingerprint=MANIFEST.fingerprint,
        size_bytes=10**7,
        modified_ns=10**18,
        created_ns=0,
        writer="host:1",
        duration_seconds=60.0,
        fps=25.0,
        width=1280,
        height=720,
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        num_source_frames=1500,
        num_frames=32,
        num_bad_packets=0,
        decoder="pyav",
        decoder_version="18.1",
        grid_frames=16,
        grid_height=14,
        grid_width=14,
        tokens_before=3136,
        tokens_after=1000,
        keep_ratio=1000 / 3136,
        anchor_frame=3,
        nested=True,
        hidden_size=2048,
        num_deepstack=3,
        dtype="BF16",
        next_position=2000,
        decode_seconds=0.4,
        encode_seconds=0.8,
        fuse_seconds=0.01,
        content_sha256="0" * 64,
        key="0" * 64,
        shard="0" * 64,
        offset=4096,
        num_bytes=layout.num_bytes,
        head_digest=1,
        layout=layout,
    )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
