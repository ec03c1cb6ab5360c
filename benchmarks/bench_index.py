"""How long opening an index and looking a video up take, up to ten million videos; compaction.

Run: python benchmarks/bench_index.py [ROWS ...]       1000000 and 10000000 unless given
Wall-clock: opening is the median of the repeats, a look-up the median (99th percentile) of 1000
random ones, compaction runs once. A fresh look-up opens its bucket's file, a warm one finds it
open. Each case is measured in a process of its own: MB are what its resident memory grew by.
The index of the ROWS is written by the store's bucket writer from generated rows, whose layouts
differ. Files are warm in the page cache. Needs Linux.
"""

import datetime as dt
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs.plan import DONE_COLUMNS
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.bucket_index import MAX_OPEN_BUCKETS, open_index, read_columns
from pipeline.store.buckets import BLOCK_ROWS, pack_bucket
from pipeline.store.compact import compact_cache
from pipeline.store.fragment import (
    INDEX_FOLDER,
    NUM_BUCKETS,
    bucket_of,
    fragment_file,
    pack_table,
    rows_to_table,
)
from pipeline.store.manifest import create_or_check
from schemas.config import SamplingConfig
from schemas.errors import VideoNotCachedError
from schemas.fusion import FusionConfig
from schemas.grid import PatchGeometry
from schemas.index import INDEX_SCHEMA, IndexRow
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess
from schemas.tokens import RecordLayout, TensorSpec

CASES = ((100, 1000), (1000, 1000))  # loose fragments, rows in each
COUNTS = (1_000_000, 10_000_000)  # rows in buckets
REPEATS = 3
LOOKUPS = 1000
NUM_LAYOUTS = 2000
ROWS_PER_SHARD = 100

MANIFEST = Manifest(
    encoder=EncoderIdentity("bench", "0" * 64, "0" * 64, "BF16", 2048, 3, PatchGeometry(16, 2, 2)),
    sampling=SamplingConfig(),
    preprocess=ResolvedPreprocess(1, 2, False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    decode=DecoderIdentity("auto", {"pyav": "0"}),
    fusion=FusionConfig(),
)


def main() -> None:
    counts = [int(text) for text in sys.argv[1:]] or COUNTS
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions: kernel {platform.release()}, pyarrow {pa.__version__}")
    command = " ".join(["benchmarks/bench_index.py", *sys.argv[1:]])
    print(f"date: {dt.date.today()}  command: python {command}")
    print(f"load average: {os.getloadavg()[0]:.1f}  rows of a block: {BLOCK_ROWS}\n")
    print("| loose fragments x rows | open | compact s | again s | open then | MB compacting |")
    print("|-|-|-|-|-|-|")
    if len(sys.argv) == 1:
        for num_fragments, num_rows in CASES:
            print_compaction(num_fragments, num_rows)
    print("\n| rows in buckets | measured | result | MB |")
    print("|-:|:-|:-|-:|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            print_lookups(Path(folder), count)


def print_compaction(num_fragments: int, num_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill_cache(Path(folder), num_fragments, num_rows)
        before = in_process("open", folder)
        compact, again = in_process("compact", folder), in_process("compact", folder)
        after = in_process("open", folder)
    print(
        f"| {num_fragments} x {num_rows} | {before['open']} | {compact['compact_s']:.1f} "
        f"| {again['compact_s']:.1f} | {after['open']} | {compact['mb']:.0f} |",
        flush=True,
    )


def print_lookups(root: Path, count: int) -> None:
    started = time.perf_counter()
    fill_buckets(root, count)
    wrote = f"{time.perf_counter() - started:.0f} s to generate and write"
    num_bytes = sum(path.stat().st_size for path in (root / INDEX_FOLDER).iterdir())
    print(f"| {count:,} | files: {wrote} | {num_bytes / 2**20:.0f} MiB | |", flush=True)
    for case in ("open", "warm", "fresh", "plan", "query"):
        results = in_process(case, str(root), str(count))
        mb = results.pop("mb")
        for name, result in results.items():
            print(f"| {count:,} | {name} | {result} | {mb:.0f} |", flush=True)


def in_process(case: str, folder: str, count: str = "0") -> dict:
    command = [sys.executable, __file__, "--case", case, folder, count]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(case: str, root: Path, count: int) -> dict:
    before = resident_mb("VmRSS")
    results = {
        "open": measure_open,
        "compact": measure_compaction,
        "warm": measure_warm,
        "fresh": measure_fresh,
        "plan": measure_planning,
        "query": measure_query,
    }[case](root, count)
    return {**results, "mb": resident_mb("VmHWM") - before}


def measure_open(root: Path, count: int) -> dict:
    seconds = statistics.median(seconds_of(lambda: open_cache(root), REPEATS))
    return {"open": f"{1000 * seconds:.0f} ms"}


def measure_compaction(root: Path, count: int) -> dict:
    started = time.perf_counter()
    compact_cache(open_storage(root))
    return {"compact_s": time.perf_counter() - started}


def measure_warm(root: Path, count: int) -> dict:
    index = open_index(open_storage(root))
    some = f"{MAX_OPEN_BUCKETS} of {NUM_BUCKETS} files open"
    return {
        f"look-up, hit, {some}": look_up(lambda: index, known_ids(count)),
        f"look-up, miss, {some}": look_up(lambda: index, absent_ids(count)),
        "look-up, hit, file open": look_up(lambda: index, known_ids(count, MAX_OPEN_BUCKETS)),
        "look-up, miss, file open": look_up(lambda: index, absent_ids(count, MAX_OPEN_BUCKETS)),
    }


def measure_fresh(root: Path, count: int) -> dict:
    storage = open_storage(root)
    return {
        "look-up, hit, fresh index": look_up(lambda: open_index(storage), known_ids(count)),
        "look-up, miss, fresh index": look_up(lambda: open_index(storage), absent_ids(count)),
    }


def measure_planning(root: Path, count: int) -> dict:
    started = time.perf_counter()
    table = read_columns(open_storage(root), DONE_COLUMNS)
    assert table.num_rows == count
    return {"columns for planning": f"{time.perf_counter() - started:.1f} s"}


def measure_query(root: Path, count: int) -> dict:
    cache = open_cache(root)
    started = time.perf_counter()
    found = cache.query("SELECT count(*) AS n, avg(keep_ratio) FROM index WHERE status = 'ok'")
    assert found["n"].to_pylist() == [count]
    return {"count and average in SQL": f"{time.perf_counter() - started:.1f} s"}


def look_up(make_index: Callable, ids: list[str]) -> str:
    """Microbenchmark of ``row``; a fresh index is made before the clock runs."""
    milliseconds = []
    for warming in (True, False):
        for video_id in ids:
            index = make_index()
            started = time.perf_counter()
            with suppress(VideoNotCachedError):
                index.row(video_id)
            if not warming:
                milliseconds.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return f"{p50:.2f} ms ({p99:.2f})"


def seconds_of(step: Callable, repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


def resident_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def name_of(number: int) -> str:
    return f"folder{number % 9973}/video{number:08}.mp4"


def known_ids(count: int, num_buckets: int = NUM_BUCKETS) -> list[str]:
    return some_ids(range(count), num_buckets)


def absent_ids(count: int, num_buckets: int = NUM_BUCKETS) -> list[str]:
    return some_ids(range(count, 2 * count), num_buckets)


def some_ids(numbers: range, num_buckets: int) -> list[str]:
    """Random ids, of the first ``num_buckets`` buckets only."""
    draw, found = random.Random(0), []
    while len(found) < LOOKUPS:
        video_id = name_of(draw.choice(numbers))
        if bucket_of(video_id) < num_buckets:
            found.append(video_id)
    return found


def fill_cache(root: Path, num_fragments: int, num_rows: int) -> None:
    """An index as builds leave it, without the shards: nothing here opens one."""
    create_or_check(open_storage(root), MANIFEST)
    (root / INDEX_FOLDER).mkdir()
    layouts = some_layouts()
    for fragment in range(num_fragments):
        table = rows_of(range(fragment * num_rows, (fragment + 1) * num_rows), layouts)
        name = digest(f"fragment {fragment}")
        (root / fragment_file(name)).write_bytes(pack_table(table))


def fill_buckets(root: Path, count: int) -> None:
    """The index of ``count`` videos as compaction leaves it."""
    create_or_check(open_storage(root), MANIFEST)
    (root / INDEX_FOLDER).mkdir()
    layouts = some_layouts()
    buckets = np.fromiter((bucket_of(name_of(number)) for number in range(count)), np.uint8, count)
    order = np.argsort(buckets, kind="stable")
    begins = np.searchsorted(buckets[order], np.arange(NUM_BUCKETS + 1))
    for bucket in range(NUM_BUCKETS):
        data = pack_bucket(rows_of(order[begins[bucket] : begins[bucket + 1]].tolist(), layouts))
        name = f"{bucket:02x}-{hashlib.sha256(data).hexdigest()}"
        (root / fragment_file(name)).write_bytes(data)


def some_layouts() -> pa.Table:
    """Rows of a few lengths, with layouts to match."""
    draw = random.Random(0)
    return rows_to_table([committed_row(draw.randrange(200, 3000)) for _ in range(NUM_LAYOUTS)])


def rows_of(numbers: list[int] | range, layouts: pa.Table) -> pa.Table:
    """Rows by video id, with digests, sizes and times that all differ."""
    numbers = sorted(numbers, key=name_of)
    draw = np.random.default_rng(numbers[0])
    count = len(numbers)
    columns = {
        "video_id": [name_of(n) for n in numbers],
        "path": [f"/data/corpus/{name_of(n)}" for n in numbers],
        "content_sha256": digests(draw, count),
        "key": digests(draw, count),
        "shard": [digest(f"shard {n // ROWS_PER_SHARD}") for n in numbers],
        "offset": draw.integers(1, 10**6, count) * 64,
        "head_digest": draw.integers(0, 2**63, count).astype(np.uint64),
        "size_bytes": draw.integers(10**5, 10**9, count),
        "modified_ns": draw.integers(10**18, 2 * 10**18, count),
        "created_ns": draw.integers(10**18, 2 * 10**18, count),
        "duration_seconds": draw.random(count) * 100,
        "decode_seconds": draw.random(count),
        "encode_seconds": draw.random(count),
        "fuse_seconds": draw.random(count),
    }
    table = layouts.take(pa.array(draw.integers(0, layouts.num_rows, count)))
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = INDEX_SCHEMA.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table.combine_chunks()


def digests(draw: np.random.Generator, count: int) -> list[str]:
    data = draw.bytes(32 * count).hex()
    return [data[place : place + 64] for place in range(0, len(data), 64)]


def committed_row(num_rows: int) -> IndexRow:
    shapes = {
        "row_digest": ("U64", (num_rows,)),
        "score": ("F32", (num_rows,)),
        "grid_index": ("I32", (num_rows,)),
        "prompt_index": ("I32", (num_rows,)),
        "input_ids": ("I32", (num_rows + 100,)),
        "position_ids": ("I32", (3, num_rows + 100)),
        "match": ("I32", (3136,)),
        "pad": ("U8", (0,)),
        "features": ("BF16", (num_rows, 8192)),
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
        tokens_after=num_rows,
        keep_ratio=num_rows / 3136,
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
    if sys.argv[1:2] == ["--case"]:
        _, _, case, folder, count = sys.argv
        print(json.dumps(measure(case, Path(folder), int(count))))
    else:
        main()
