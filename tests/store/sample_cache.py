"""Small caches with known content, made by the real writer."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.storage import open_storage
from pipeline.store.commit import PendingVideo, commit_videos
from pipeline.store.manifest import create_or_check
from pipeline.store.record import pack_record
from schemas.config import SamplingConfig
from schemas.fusion import FusionConfig
from schemas.grid import PatchGeometry, TokenGrid
from schemas.index import IndexRow
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess

MANIFEST = Manifest(
    encoder=EncoderIdentity(
        model_type="qwen3_vl",
        weights_digest="1" * 64,
        tokenizer_digest="2" * 64,
        dtype="BF16",
        hidden_size=8,
        num_deepstack=2,
        patches=PatchGeometry(16, 2, 2),
    ),
    sampling=SamplingConfig(),
    preprocess=ResolvedPreprocess(1, 2, False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    decode=DecoderIdentity("auto", {"pyav": "18.1"}),
    fusion=FusionConfig(),
)

DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, eq=False)
class Sample:
    """One video's tensors in storage order, and what a full load must give."""

    tensors: dict[str, Tensor]
    grid: TokenGrid
    hidden_size: int
    num_deepstack: int

    @property
    def prompt_order(self) -> Tensor:
        return self.tensors["prompt_index"].argsort()

    def record(self, key: str):
        return pack_record(key=key, **self.tensors)

    def fields(self, video_id: str, **changes) -> dict:
        features = self.tensors["features"]
        known = {
            "video_id": video_id,
            "path": f"/videos/{video_id}",
            "fingerprint": MANIFEST.fingerprint,
            "size_bytes": 1000,
            "modified_ns": 5,
            "created_ns": 7,
            "writer": "test",
            "duration_seconds": 12.5,
            "content_sha256": "c" * 64,
            "grid_frames": self.grid.frames,
            "grid_height": self.grid.height,
            "grid_width": self.grid.width,
            "tokens_before": self.grid.num_tokens,
            "tokens_after": len(features),
            "keep_ratio": len(features) / self.grid.num_tokens,
            "anchor_frame": 1,
            "nested": True,
            "hidden_size": self.hidden_size,
            "num_deepstack": self.num_deepstack,
            "dtype": DTYPE_NAMES[features.dtype],
            "next_position": 1000,
        }
        return {**known, **changes}

    def pending(self, video_id: str, *, key: str = "a" * 64, **changes) -> PendingVideo:
        return PendingVideo(self.fields(video_id, **changes), self.record(key))


def make_sample(
    *,
    seed: int = 0,
    grid: TokenGrid = TokenGrid(3, 4, 5),  # noqa: B008 - frozen
    num_rows: int = 40,
    hidden_size: int = 8,
    num_deepstack: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    text_columns: int = 9,
) -> Sample:
    """Anchor frame 1 first (score -1), then the others by ascending score, as TTF stores them."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(grid.num_tokens)
    is_anchor = places // grid.tokens_per_frame == min(1, grid.frames - 1)
    others = places[~is_anchor]
    others = others[torch.randperm(len(others), generator=generator)]
    stored = torch.cat([places[is_anchor], others])[:num_rows]
    num_anchors = min(int(is_anchor.sum()), num_rows)
    score = torch.full((num_rows,), -1.0)
    score[num_anchors:] = (
        torch.rand(num_rows - num_anchors, generator=generator).sort().values * 0.7
    )
    length = num_rows + text_columns
    columns = torch.randperm(length, generator=generator)[:num_rows].sort().values
    prompt_index = torch.empty(num_rows, dtype=torch.int64)
    prompt_index[stored.argsort()] = columns
    width = hidden_size * (1 + num_deepstack)
    tensors = {
        "features": torch.randn(num_rows, width, generator=generator).to(dtype),
        "score": score,
        "grid_index": stored,
        "prompt_index": prompt_index,
        "input_ids": torch.randint(0, 150_000, (length,), generator=generator),
        "position_ids": torch.randint(0, 900, (3, length), generator=generator),
        "match": torch.randint(-1, grid.num_tokens, (grid.num_tokens,), generator=generator),
    }
    return Sample(tensors, grid, hidden_size, num_deepstack)


def failed_row(video_id: str, **changes) -> IndexRow:
    row = IndexRow(
        video_id=video_id,
        path=f"/videos/{video_id}",
        status="failed",
        error_kind="truncated",
        error_message="the file ends after 3 of 90 frames",
        fingerprint=MANIFEST.fingerprint,
        size_bytes=10,
        modified_ns=5,
        created_ns=7,
        writer="test",
    )
    return replace(row, **changes)


def build(root: Path, *entries, manifest: Manifest = MANIFEST) -> list[IndexRow]:
    create_or_check(open_storage(root), manifest)
    return commit_videos(open_storage(root), list(entries))


def shard_of(root: Path) -> Path:
    (path,) = (root / "shards").glob("*.safetensors")
    return path


def fragment_of(root: Path) -> Path:
    (path,) = (root / "index").glob("*.parquet")
    return path


def fragments_of(root: Path) -> list[Path]:
    return sorted((root / "index").glob("*.parquet"))
