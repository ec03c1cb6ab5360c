"""What the encodings of feature rows save, cost and lose, on one video of 700 rows.

Run: python benchmarks/bench_encoding.py
Wall-clock medians; the forms alternate within one run, all in memory, one thread.
"""

import datetime as dt
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.store import fp8, shuffled_zstd

REPEATS = 15
NUM_ROWS, NUM_LAYERS, HIDDEN_SIZE = 700, 4, 2048
WIDTH = NUM_LAYERS * HIDDEN_SIZE
OUTLIERS = (5, 700, 1999)  # channels of each layer, 100 times as large as the others
RANK = 64
FRAMES = ((8, 1), (16, 1), (32, 1), (40, 1), (48, 1), (64, 1), (128, 1), (48, 2), (48, 3))


def main() -> None:
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(
        f"versions: kernel {platform.release()}, torch {torch.__version__}, arrow {pa.__version__}"
    )
    print(f"date: {dt.date.today()}  command: python benchmarks/bench_encoding.py")
    print(f"load average: {os.getloadavg()[0]:.1f}  repeats: {REPEATS}\n")
    torch.set_num_threads(1)
    data = {"gaussian": gaussian(), "low rank, 3 outlier channels": low_rank()}
    print(
        f"{NUM_ROWS} x {WIDTH} bfloat16, {NUM_ROWS * WIDTH * 2 / 1e6:.0f} MB. GB are of features."
    )
    print("x: multiples of memcpy of the features. Errors: relative L2; largest error as a part of")
    print("the largest value of its row and layer.\n")
    print(
        "| data | encoding | ratio | encode GB/s | decode GB/s | encode | decode | quarter |",
        end="",
    )
    print(" error, all | ordinary channels | largest |")
    print("|-|-|-|-|-|-|-|-|-|-|-|")
    for name, features in data.items():
        print(zstd_line(name, features), flush=True)
        print(fp8_line(name, features), flush=True)
    print("\nFrames of the gaussian rows; those of the format are 48 rows at level 1.\n")
    print("| rows | level | ratio | encode GB/s | decode GB/s |\n|-|-|-|-|-|")
    for frame_rows, level in FRAMES:
        print(frame_line(data["gaussian"], frame_rows, level), flush=True)


def gaussian() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM_ROWS, WIDTH, generator=generator).to(torch.bfloat16)


def low_rank() -> torch.Tensor:
    """Rows of rank 64, three channels of each layer far larger than the others."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(NUM_ROWS, RANK, generator=generator)
    features = rows @ torch.randn(RANK, WIDTH, generator=generator) / RANK**0.5
    features.view(NUM_ROWS, NUM_LAYERS, HIDDEN_SIZE)[:, :, OUTLIERS] *= 100
    return features.to(torch.bfloat16)


def zstd_line(name: str, features: torch.Tensor) -> str:
    rows = as_rows(features)
    blob, frame_end = shuffled_zstd.compress_rows(rows, 2)
    out = np.zeros_like(rows)
    part = out[: NUM_ROWS // 4]
    memcpy, encode, decode, quarter = alternate(
        lambda: np.copyto(out, rows),
        lambda: shuffled_zstd.compress_rows(rows, 2),
        lambda: decompress(blob, frame_end, out),
        lambda: decompress(blob, frame_end, part),
    )
    out[:] = 0
    decompress(blob, frame_end, out)
    assert np.array_equal(out[places(NUM_ROWS)], rows)
    ratio = rows.nbytes / (len(blob) + frame_end.nbytes)
    return line(name, "zstd", ratio, rows.nbytes, memcpy, encode, decode, quarter) + "0 | 0 | 0 |"


def fp8_line(name: str, features: torch.Tensor) -> str:
    rows = as_rows(features)
    copy = np.zeros_like(rows)
    codes, scale = fp8.encode_fp8(features, NUM_LAYERS)
    out = torch.zeros_like(features)
    few = NUM_ROWS // 4
    memcpy, encode, decode, quarter = alternate(
        lambda: np.copyto(copy, rows),
        lambda: fp8.encode_fp8(features, NUM_LAYERS),
        lambda: fp8.decode_fp8(codes, scale, out),
        lambda: fp8.decode_fp8(codes[:few], scale[:few], out[:few]),
    )
    ratio = rows.nbytes / (codes.nbytes + scale.nbytes)
    return line(name, "fp8", ratio, rows.nbytes, memcpy, encode, decode, quarter) + errors(
        features, out
    )


def errors(features: torch.Tensor, decoded: torch.Tensor) -> str:
    true = features.double().view(NUM_ROWS, NUM_LAYERS, HIDDEN_SIZE)
    error = decoded.double().view(true.shape) - true
    ordinary = torch.ones(HIDDEN_SIZE, dtype=torch.bool)
    ordinary[list(OUTLIERS)] = False
    overall = error.norm() / true.norm()
    channels = error[:, :, ordinary].norm() / true[:, :, ordinary].norm()
    largest = (error.abs().amax(dim=2) / true.abs().amax(dim=2)).max()
    return f"{overall:.4f} | {channels:.4f} | {largest:.4f} |"


def frame_line(features: torch.Tensor, frame_rows: int, level: int) -> str:
    rows = as_rows(features)
    out = np.zeros_like(rows)
    format_values = shuffled_zstd.FRAME_ROWS, shuffled_zstd.ZSTD_LEVEL
    shuffled_zstd.FRAME_ROWS, shuffled_zstd.ZSTD_LEVEL = frame_rows, level
    try:
        blob, frame_end = shuffled_zstd.compress_rows(rows, 2)
        encode, decode = alternate(
            lambda: shuffled_zstd.compress_rows(rows, 2), lambda: decompress(blob, frame_end, out)
        )
    finally:
        shuffled_zstd.FRAME_ROWS, shuffled_zstd.ZSTD_LEVEL = format_values
    size = rows.nbytes
    ratio = size / (len(blob) + frame_end.nbytes)
    return (
        f"| {frame_rows} | {level} | {ratio:.3f} | {size / encode / 1e9:.2f} "
        f"| {size / decode / 1e9:.2f} |"
    )


def line(
    name: str,
    kind: str,
    ratio: float,
    size: int,
    memcpy: float,
    encode: float,
    decode: float,
    quarter: float,
) -> str:
    return (
        f"| {name} | {kind} | {ratio:.3f} | {size / encode / 1e9:.2f} | {size / decode / 1e9:.2f} "
        f"| {encode / memcpy:.0f}x | {decode / memcpy:.1f}x | {quarter / decode:.2f} | "
    )


def decompress(blob: bytes, frame_end: np.ndarray, out: np.ndarray) -> None:
    """Write the first rows, each into a random place: as the reader does, without its digests."""
    values, order = out.view("<u2"), places(len(out))
    starts, step = [0, *frame_end.tolist()], shuffled_zstd.FRAME_ROWS
    for frame, first in enumerate(range(0, len(out), step)):
        decompressed = shuffled_zstd.decompress_frame(
            memoryview(blob)[starts[frame] : starts[frame + 1]],
            num_rows=min(step, NUM_ROWS - first),
            row_bytes=out.shape[1],
            item_bytes=2,
        )
        here = order[first : first + step]
        values[here] = decompressed[: len(here)]


def places(num_rows: int) -> np.ndarray:
    """A random order of rows: the least favourable one for the reader."""
    return np.random.default_rng(0).permutation(num_rows)


def as_rows(features: torch.Tensor) -> np.ndarray:
    return features.view(torch.uint8).numpy()


def alternate(*forms: Callable[[], object]) -> list[float]:
    """Median seconds of each form, one call of each in turn."""
    seconds: list[list[float]] = [[] for _ in forms]
    for repeat in range(REPEATS + 2):
        for form, times in zip(forms, seconds, strict=True):
            started = time.perf_counter()
            form()
            elapsed = time.perf_counter() - started
            if repeat >= 2:
                times.append(elapsed)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
