"""What planning costs before a build does anything: time and memory, in fresh processes.

Run: python benchmarks/bench_plan.py [VIDEOS ...]      20000 and 100000 unless given
Makes real files (sparse, so that 100,000 names take no room) and a finished cache of them, its
index in fragments of 250 rows, in one, and in buckets. One run each, names and index warm in the
page cache. Needs Linux: memory is read from /proc.
"""

import datetime as dt
import functools
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs.plan import DONE_COLUMNS, make_plan
from pipeline.corpus import find_videos
from pipeline.storage import open_storage
from pipeline.store.bucket_index import read_columns
from pipeline.store.compact import compact_cache
from pipeline.store.fragment import (
    LARGE_FRAGMENT_ROWS,
    ROW_GROUP_ROWS,
    fragment_file,
    rows_to_table,
)
from pipeline.store.manifest import create_or_check, read_manifest
from pipeline.store.shard import shard_file, shard_sizes
from schemas.config import SamplingConfig
from schemas.fusion import FusionConfig
from schemas.grid import PatchGeometry
from schemas.index import IndexRow
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess
from schemas.tokens import RecordLayout, TensorSpec
from schemas.video import VideoRef

REPOSITORY = Path(__file__).parents[1]
ROWS_PER_FRAGMENT = 250
VIDEOS_PER_FOLDER = 1000
VIDEO_BYTES = 2**16
TOUCHED_VIDEOS, TOUCHED_BYTES = 2000, 2**21
GRID, HIDDEN_SIZE, NUM_DEEPSTACK = (32, 14, 14), 2048, 3

PLAN_COMMAND = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from jobs.cli import cli
cli(standalone_mode=False)
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def main() -> None:
    counts = [int(text) for text in sys.argv[1:]] or [20_000, 100_000]
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions: Python {platform.python_version()}, pyarrow {pa.__version__}")
    command = " ".join(["benchmarks/bench_plan.py", *sys.argv[1:]])
    print(f"date: {dt.date.today()}  command: python {command}")
    print(f"load average: {os.getloadavg()[0]:.1f}\n")
    print("CPU: of all threads. MB: resident when the step began, and the peak while it ran.\n")
    print("| videos | corpus or index | step | wall s | CPU s | MB before | MB peak |")
    print("|-:|:-|:-|-:|-:|-:|-:|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            print_listing(Path(folder), count)
        with tempfile.TemporaryDirectory() as folder:
            print_planning(Path(folder), count)
    with tempfile.TemporaryDirectory() as folder:
        print_touched(Path(folder))


def print_listing(folder: Path, count: int) -> None:
    """Listing alone, from every form a corpus may have."""
    for name, per_folder in (("one folder", count), ("folders of 10", 10)):
        make_corpus(folder / name, count, VIDEO_BYTES, per_folder=per_folder)
    rows = [
        {"video_id": ref.video_id, "uri": ref.path, "number": number}
        for number, ref in enumerate(find_videos([str(folder / "one folder")]))
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "manifest.parquet")
    csv.write_csv(table, folder / "manifest.csv")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in sorted(folder.iterdir()):
        command = [sys.executable, __file__, "--list", str(path)]
        print_measured(count, path.name, run(command).stdout)


def print_planning(folder: Path, count: int) -> None:
    corpus = folder / "corpus"
    make_corpus(corpus, count, VIDEO_BYTES)
    refs = find_videos([str(corpus)])
    print_steps(count, "no cache yet", corpus, folder / "absent")
    tables = make_cache(folder / "cache", refs)
    for parts in (tables, [pa.concat_tables(tables)]):
        write_index(folder / "cache", parts)
        print_steps(count, f"in {len(parts)} fragment(s)", corpus, folder / "cache")
    compact_cache(open_storage(folder / "cache"), bucket_from_rows=1)
    print_steps(count, "in buckets", corpus, folder / "cache")


def print_touched(folder: Path) -> None:
    """A corpus that was copied: every time differs, so contents decide."""
    corpus, cache = folder / "corpus", folder / "cache"
    make_corpus(corpus, TOUCHED_VIDEOS, TOUCHED_BYTES)
    write_index(cache, make_cache(cache, find_videos([str(corpus)])))
    for path in corpus.rglob("*.mp4"):
        os.utime(path, ns=(1, 1))
    gib = TOUCHED_VIDEOS * TOUCHED_BYTES / 2**30
    print_steps(TOUCHED_VIDEOS, f"all times differ, {gib:.1f} GiB", corpus, cache)


def print_steps(count: int, index: str, corpus: Path, cache: Path) -> None:
    steps = [sys.executable, __file__, "--steps", str(corpus), str(cache)]
    print_measured(count, index, run(steps).stdout)
    plan = [sys.executable, "-c", PLAN_COMMAND, str(REPOSITORY), "plan", str(corpus)]
    started, cpu_before = time.perf_counter(), cpu_seconds_of_children()
    status = run([*plan, "--out", str(cache)]).stderr
    wall, cpu = time.perf_counter() - started, cpu_seconds_of_children() - cpu_before
    peak = int(status.split()[-2]) / 1024
    print_measured(count, index, json.dumps(["`tokenreel plan`, all of it", wall, cpu, 0, peak]))


def print_measured(count: int, what: str, lines: str) -> None:
    for line in lines.splitlines():
        step, wall, cpu, before, peak = json.loads(line)
        numbers = f"{wall:.2f} | {cpu:.2f} | {before:.0f} | {peak:.0f}"
        print(f"| {count:,} | {what} | {step} | {numbers} |", flush=True)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return done


def measure_steps(corpus: str, root: Path) -> None:
    """The steps of ``tokenreel plan`` one by one in this process, a JSON line each."""
    refs = measured_listing(corpus)
    if not root.exists():
        plan = measured("make_plan", lambda: make_plan(refs, None))
        measured("tasks", plan.tasks)
        return
    storage = open_storage(root)
    table = measured("read_columns", lambda: read_columns(storage, DONE_COLUMNS))
    known = {
        "fingerprint": read_manifest(storage).fingerprint,
        "shard_sizes": shard_sizes(storage),
    }
    plan = measured("make_plan", lambda: make_plan(refs, table, **known))
    if plan.num_done != len(refs):
        raise SystemExit(f"{plan.num_done} of {len(refs)} videos are done")


def measured_listing(source: str) -> list[VideoRef]:
    return measured("find_videos", lambda: find_videos([source]))


def measured(name: str, step: Callable[[], Any]) -> Any:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_mb("VmRSS")
    started, cpu_before = time.perf_counter(), time.process_time()
    result = step()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_before
    print(json.dumps([name, wall, cpu, before, resident_mb("VmHWM")]))
    return result


def cpu_seconds_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def resident_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def make_corpus(
    folder: Path, count: int, num_bytes: int, *, per_folder: int = VIDEOS_PER_FOLDER
) -> None:
    """Files of ``num_bytes`` and a little more; no block is written."""
    for number in range(count):
        path = folder / f"{number // per_folder:05d}" / f"clip_{number:07d}.mp4"
        if number % per_folder == 0:
            path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(num_bytes + number % 1000)


def make_cache(root: Path, refs: list[VideoRef]) -> list[pa.Table]:
    """A finished cache without its index, which is returned; shards have a length, no content."""
    create_or_check(open_storage(root), MANIFEST)
    (root / "shards").mkdir()
    tables = []
    for first in range(0, len(refs), ROWS_PER_FRAGMENT):
        shard = digest(f"shard {first}")
        rows, offset = [], 4096
        for ref in refs[first : first + ROWS_PER_FRAGMENT]:
            rows.append(committed_row(ref, shard, offset))
            offset += rows[-1].num_bytes
        with (root / shard_file(shard)).open("wb") as file:
            file.truncate(offset)
        tables.append(rows_to_table(rows))
    return tables


def write_index(root: Path, tables: list[pa.Table]) -> None:
    """One fragment per table, in place of those that were there."""
    shutil.rmtree(root / "index", ignore_errors=True)
    (root / "index").mkdir()
    for number, table in enumerate(tables):
        is_large = table.num_rows >= LARGE_FRAGMENT_ROWS
        pq.write_table(
            table,
            root / fragment_file(digest(f"fragment {number}")),
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=is_large,
            write_statistics=is_large,
            write_page_checksum=True,
        )


@functools.cache
def digest_of_zeros(num_bytes: int) -> str:
    return hashlib.sha256(bytes(num_bytes)).hexdigest()


def committed_row(ref: VideoRef, shard: str, offset: int) -> IndexRow:
    num_tokens = GRID[0] * GRID[1] * GRID[2]
    layout = record_layout(random.Random(ref.video_id).randrange(200, num_tokens), num_tokens)
    num_rows = layout["features"].shape[0]
    return IndexRow(
        video_id=ref.video_id,
        path=ref.printable_path,
        status="ok",
        fingerprint=MANIFEST.fingerprint,
        size_bytes=ref.size_bytes,
        modified_ns=ref.modified_ns,
        created_ns=time.time_ns(),
        writer="bench",
        duration_seconds=num_rows / 100,
        fps=25.0,
        width=640,
        height=360,
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        num_source_frames=num_rows // 4,
        num_frames=2 * GRID[0],
        num_bad_packets=0,
        decoder="pyav",
        decoder_version="18.1.0",
        grid_frames=GRID[0],
        grid_height=GRID[1],
        grid_width=GRID[2],
        tokens_before=num_tokens,
        tokens_after=num_rows,
        keep_ratio=num_rows / num_tokens,
        anchor_frame=num_rows % GRID[0],
        nested=True,
        hidden_size=HIDDEN_SIZE,
        num_deepstack=NUM_DEEPSTACK,
        dtype="BF16",
        next_position=10_000,
        decode_seconds=num_rows / 7000,
        encode_seconds=num_rows / 3000,
        fuse_seconds=num_rows / 90_000,
        content_sha256=digest_of_zeros(ref.size_bytes),
        key=digest(f"key {ref.video_id}"),
        shard=shard,
        offset=offset,
        num_bytes=layout.num_bytes,
        head_digest=hash(ref.video_id) % 2**64,
        layout=layout,
    )


def record_layout(num_rows: int, num_tokens: int) -> RecordLayout:
    length = num_rows + 10 * GRID[0]
    shapes = (
        *(("row_digest", "U64", (num_rows,)), ("score", "F32", (num_rows,))),
        *(("grid_index", "I32", (num_rows,)), ("prompt_index", "I32", (num_rows,))),
        *(("input_ids", "I32", (length,)), ("position_ids", "I32", (3, length))),
        ("match", "I32", (num_tokens,)),
        ("features", "BF16", (num_rows, (1 + NUM_DEEPSTACK) * HIDDEN_SIZE)),
    )
    specs: list[TensorSpec] = []
    for name, dtype, shape in shapes:
        specs.append(TensorSpec(name, dtype, shape, specs[-1].end if specs else 0))
    return RecordLayout(tuple(specs))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


MANIFEST = Manifest(
    encoder=EncoderIdentity(
        "bench", "0" * 64, "0" * 64, "BF16", HIDDEN_SIZE, NUM_DEEPSTACK, PatchGeometry(16, 2, 2)
    ),
    sampling=SamplingConfig(),
    preprocess=ResolvedPreprocess(1, 2, False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    decode=DecoderIdentity("auto", {}),
    fusion=FusionConfig(),
)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--steps"]:
        measure_steps(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--list"]:
        measured_listing(sys.argv[2])
    else:
        main()
