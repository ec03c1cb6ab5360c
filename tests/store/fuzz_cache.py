"""The cache that is corrupted, another beside it, and what one corruption needs."""

import random
import shutil
from pathlib import Path

import torch

from pipeline.storage import open_storage
from pipeline.store.commit import PendingVideo, commit_videos
from pipeline.store.compact import compact_cache
from pipeline.store.manifest import create_or_check
from pipeline.store.record import encode_record
from schemas.grid import TokenGrid
from tests.store.sample_cache import MANIFEST, failed_row, make_sample

STRANGER = "stranger.mp4"
"""A video of the cache beside the one under test; it must never be seen."""


def make_cache(root: Path, *, in_buckets: bool) -> None:
    """Six videos of every type and encoding in two shards, and rows without tensors.

    The rows lie in loose fragments; with ``in_buckets`` all but two lie in bucket fragments.
    """
    create_or_check(open_storage(root), MANIFEST)
    kinds = [
        ("bf16.mp4", torch.bfloat16, "none"),
        ("f16.mp4", torch.float16, "none"),
        ("f32.mp4", torch.float32, "none"),
        ("zstd.mp4", torch.bfloat16, "zstd"),
        ("zstd32.mp4", torch.float32, "zstd"),
        ("fp8.mp4", torch.bfloat16, "fp8"),
    ]
    grid = TokenGrid(6, 4, 5)
    entries = []
    for seed, (video_id, dtype, encoding) in enumerate(kinds):
        sample = make_sample(seed=seed, grid=grid, num_rows=60 + seed, dtype=dtype)
        record = encode_record(sample.record(f"{seed:064x}"), encoding, num_layers=3)
        extra = {"place": "kitchen", "camera": seed}
        entries.append(PendingVideo(sample.fields(video_id, extra=extra), record))
    commit_videos(open_storage(root), [*entries[:3], failed_row("broken.mp4")])
    commit_videos(open_storage(root), entries[3:])
    if in_buckets:
        compact_cache(open_storage(root), bucket_from_rows=1)
        commit_videos(open_storage(root), [failed_row("again.mp4"), failed_row("fp8.mp4")])
    commit_videos(open_storage(root), [failed_row("gone.mp4", status="damaged", created_ns=9)])


def make_outside(root: Path) -> None:
    """A sound cache of another video, to which links and paths of corruptions lead."""
    create_or_check(open_storage(root), MANIFEST)
    commit_videos(open_storage(root), [make_sample(seed=99).pending(STRANGER, key="9" * 64)])
    shutil.copy(next((root / "shards").iterdir()), root / "x.safetensors")


class Corruption:
    """One corruption of the cache at ``root``; ``note`` says what was done.

    ``is_forged`` where digests or self-descriptions were made anew, so that other tensors than
    the committed ones may be what the cache now truly says.
    """

    def __init__(self, root: Path, case: str) -> None:
        self.root = root
        self.random = random.Random(case)
        self.note = ""
        self.is_forged = False

    def files(self, pattern: str = "*/*") -> list[Path]:
        found = sorted(path for path in self.root.glob(pattern) if path.is_file())
        return found if pattern != "*/*" else [*found, self.root / "manifest.json"]

    def any_file(self) -> Path:
        """A shard half of the time: it holds most of the bytes."""
        if self.random.random() < 0.5:
            return self.random.choice(self.files("shards/*"))
        return self.random.choice(self.files())

    def say(self, path: Path, what: str) -> None:
        self.note += f"{path.relative_to(self.root)}: {what}; "
