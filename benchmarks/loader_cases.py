"""Caches for the loader's benchmarks, bare reads of them, and how forms are timed and judged."""

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.cache import TokenCache, open_cache
from pipeline.storage import open_storage
from pipeline.store.commit import PendingVideo, commit_videos
from pipeline.store.manifest import create_or_check
from pipeline.store.record import pack_record
from schemas.config import SamplingConfig
from schemas.fusion import FusionConfig
from schemas.grid import PatchGeometry
from schemas.index import IndexRow
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess

REPEATS = 41
WARM_UPS = 3
GRID = (32, 14, 14)
BATCH_BYTES = 2**19
"""What the loader reads at a time."""

MANIFEST = Manifest(
    encoder=EncoderIdentity("bench", "0" * 64, "0" * 64, "BF16", 2048, 3, PatchGeometry(16, 2, 2)),
    sampling=SamplingConfig(),
    preprocess=ResolvedPreprocess(1, 2, False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    decode=DecoderIdentity("auto", {}),
    fusion=FusionConfig(),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One video's features: ``num_rows`` stored tokens of ``width`` bfloat16 values."""

    num_rows: int
    width: int

    @property
    def row_kib(self) -> int:
        return self.width * 2 // 1024

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.width * 2

    def __str__(self) -> str:
        return f"{self.num_rows} x {self.row_kib} KiB ({self.num_bytes / 1e6:.0f} MB)"

    def empty_rows(self) -> torch.Tensor:
        """``(num_rows, width)`` bfloat16, its pages already there."""
        return torch.zeros(self.num_rows, self.width, dtype=torch.bfloat16)

    def stored_rows(self, number: int) -> torch.Tensor:
        """``(num_rows, width)``: the features of video ``number``, in storage order."""
        generator = torch.Generator().manual_seed(number)
        return torch.randn(self.num_rows, self.width, generator=generator).to(torch.bfloat16)

    def grid_index(self, number: int) -> torch.Tensor:
        """``(num_rows,)``: a random storage order, the least favourable one for the reader."""
        frames, height, width = GRID
        generator = torch.Generator().manual_seed(number)
        return torch.randperm(frames * height * width, generator=generator)[: self.num_rows]

    def prompt_rows(self, number: int) -> torch.Tensor:
        """``(num_rows, width)``: the features as the loader gives them."""
        return self.stored_rows(number)[self.grid_index(number).argsort()]


def build_cache(root: Path, cases: Sequence[Case], *, per_commit: int) -> TokenCache:
    """A cache of one video per case, ids in their order, ``per_commit`` of them to a shard."""
    storage = open_storage(root)
    create_or_check(storage, MANIFEST)
    for first in range(0, len(cases), per_commit):
        numbers = range(first, min(first + per_commit, len(cases)))
        commit_videos(storage, [pending(number, cases[number]) for number in numbers])
    return open_cache(root)


def shard_file(root: Path, row: IndexRow) -> Path:
    """Where the shard of a video stands in the cache folder ``root``."""
    return root / "shards" / f"{row.shard}.safetensors"


def pending(number: int, case: Case) -> PendingVideo:
    frames, height, width = GRID
    total = frames * height * width
    grid_index = case.grid_index(number)
    columns = torch.empty(case.num_rows, dtype=torch.int64)
    columns[grid_index.argsort()] = torch.arange(case.num_rows)
    length = case.num_rows + 10 * frames
    record = pack_record(
        key=f"{number:064x}",
        features=case.stored_rows(number),
        score=torch.linspace(-1, 0.7, case.num_rows),
        grid_index=grid_index,
        prompt_index=columns,
        input_ids=torch.zeros(length, dtype=torch.int64),
        position_ids=torch.zeros(3, length, dtype=torch.int64),
        match=torch.zeros(total, dtype=torch.int64),
    )
    fields = {
        "video_id": f"video{number:04}.mp4",
        "path": f"video{number:04}.mp4",
        "fingerprint": MANIFEST.fingerprint,
        "size_bytes": 1,
        "modified_ns": 1,
        "created_ns": 1,
        "writer": "bench",
        "grid_frames": frames,
        "grid_height": height,
        "grid_width": width,
        "tokens_before": total,
        "tokens_after": case.num_rows,
        "nested": True,
        "hidden_size": case.width // 4,
        "num_deepstack": 3,
        "dtype": "BF16",
        "next_position": 10_000,
    }
    return PendingVideo(fields, record)


def empty_bytes(row: IndexRow) -> memoryview:
    """Room for the whole range of a video, its pages already there."""
    return torch.zeros(row.num_bytes or 0, dtype=torch.uint8).numpy().data


def bare_read(shard: Path, row: IndexRow, raw: memoryview) -> None:
    """The whole video by one read."""
    handle = os.open(shard, os.O_RDONLY)
    assert os.preadv(handle, [raw[: row.num_bytes]], row.offset or 0) == row.num_bytes
    os.close(handle)


def scatter(shard: Path, row: IndexRow, num_rows: int, out: memoryview) -> None:
    """The head, then each of the first rows to its place in the prompt, all unverified."""
    layout = row.layout
    assert layout is not None
    offset, features = row.offset or 0, layout["features"]
    size = features.num_bytes // features.shape[0]
    handle = os.open(shard, os.O_RDONLY)
    head = bytearray(layout.head_bytes)
    assert os.preadv(handle, [head], offset) == len(head)
    columns = np.frombuffer(head, "<i4", num_rows, layout["prompt_index"].offset)
    places = np.empty(num_rows, dtype=np.int64)
    places[np.argsort(columns)] = np.arange(num_rows)
    starts = (places * size).tolist()
    step = BATCH_BYTES // size
    for first in range(0, num_rows, step):
        rows = [out[start : start + size] for start in starts[first : first + step]]
        position = offset + features.offset + first * size
        assert os.preadv(handle, rows, position) == len(rows) * size
    os.close(handle)


def flush(folder: Path) -> None:
    """Put all files of ``folder`` on disk now, not while forms are timed."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def reads_disk(form: Callable[[], object], shard: Path, num_bytes: int) -> bool:
    """Whether a dropped shard really comes from the disk again, as the kernel counts."""
    drop(shard)
    before = bytes_from_disk()
    form()
    return bytes_from_disk() - before >= num_bytes


def bytes_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def drop(shard: Path) -> None:
    """Have the kernel forget the pages of a file."""
    handle = os.open(shard, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def alternate(
    *forms: Callable[[], object],
    repeats: int = REPEATS,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Median seconds of each form, in rounds of one call each; ``before`` a call is not counted.

    Each round has another order, so that no form always finds what the same other one left in the
    processor's caches. What a form returns is freed within its time, as in a loop over videos.
    """
    seconds: list[list[float]] = [[] for _ in forms]
    shuffled = random.Random(0)
    for repeat in range(WARM_UPS + repeats):
        for place in shuffled.sample(range(len(forms)), len(forms)):
            before()
            started = time.perf_counter()
            forms[place]()
            elapsed = time.perf_counter() - started
            if repeat >= WARM_UPS:
                seconds[place].append(elapsed)
    return [statistics.median(times) for times in seconds]


def at_most(value: float, bar: float, unit: str = "x") -> str:
    """A measured value beside its bar."""
    return f"{value:.2f}{unit} " + (f"<= {bar}{unit}" if value <= bar else f"> {bar}{unit} MISSED")


def at_least(value: float, bar: float) -> str:
    """A measured ratio beside its bar."""
    return f"{value:.2f}x " + (f">= {bar}x" if value >= bar else f"< {bar}x MISSED")
