"""One video of STTM's features to its record and row."""

import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch

from jobs.committer import Entry
from jobs.failures import created_now, failed_row
from jobs.plan import Task
from jobs.sttm_source import SttmSource
from pipeline.dtypes import STORAGE_DTYPES
from pipeline.fusion import plan_fusion
from pipeline.fusion.plan import FusionPlan
from pipeline.storage.remote import file_digest
from pipeline.store.commit import PendingVideo
from pipeline.store.record import pack_record
from pipeline.sttm import (
    SttmMetadata,
    check_grid,
    read_features,
    read_metadata,
    require_finite,
)
from pipeline.sttm_prompt import video_stretch
from schemas.errors import PreprocessError
from schemas.manifest import IMPORTED, Manifest

RULE_VERSION = "1"
"""Another number when the same files would give other records."""


class SttmImporter:
    """Makes the entry of one video after the other."""

    def __init__(self, source: SttmSource, manifest: Manifest) -> None:
        self._source = source
        self._manifest = manifest
        self._fingerprint = manifest.fingerprint
        self._writer = f"{socket.gethostname()}:{os.getpid()}"

    def entry(self, task: Task) -> Entry:
        """A video's record and row; whatever is wrong with it becomes its failed row."""
        content = None
        try:
            if task.ref.size_bytes >= 0:
                content = file_digest(task.ref.path)
            return self._pending(task, content or "")
        except Exception as error:  # of any kind: no other video is touched by it
            return failed_row(
                task.ref,
                error,
                fingerprint=self._fingerprint,
                attempts=task.attempts + 1,
                writer=self._writer,
                content_sha256=content,
                newer_than_ns=task.newer_than_ns,
            )

    def _pending(self, task: Task, content: str) -> PendingVideo:
        started = time.perf_counter()
        ref, rule = task.ref, self._source.rule
        features = self._read(Path(ref.path))
        metadata = read_metadata(self._source.metadata_path(ref), rule, video_id=ref.video_id)
        grid = check_grid(features, metadata, Path(ref.path))
        require_finite(features, Path(ref.path))
        read_seconds = time.perf_counter() - started
        tokens = features.reshape(grid.num_tokens, -1)
        plan = plan_fusion(tokens, grid, self._manifest.fusion)
        kept = plan.apply(tokens)
        fuse_seconds = time.perf_counter() - started - read_seconds
        stretch = video_stretch(grid, plan.keep_index, rule)
        parts = (content, self._fingerprint, IMPORTED, RULE_VERSION)
        record = pack_record(
            key=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
            features=kept,
            score=plan.score[plan.storage_order],
            grid_index=plan.storage_index,
            prompt_index=stretch.columns_of(plan.storage_index),
            input_ids=stretch.input_ids,
            position_ids=stretch.position_ids,
            match=plan.match_index,
        )
        fields = {
            **self._source_fields(task, content, metadata),
            **_token_fields(plan, tokens.shape[1]),
            "dtype": record.layout["features"].dtype,
            "next_position": stretch.next_position,
            "decode_seconds": read_seconds,
            "fuse_seconds": fuse_seconds,
        }
        return PendingVideo(fields, record)

    def _source_fields(self, task: Task, content: str, metadata: SttmMetadata) -> dict[str, Any]:
        return {
            "video_id": task.video_id,
            "path": task.ref.printable_path,
            "fingerprint": self._fingerprint,
            "size_bytes": task.ref.size_bytes,
            "modified_ns": task.ref.modified_ns,
            "created_ns": created_now(task.newer_than_ns),
            "writer": self._writer,
            "attempts": task.attempts + 1,
            "content_sha256": content,
            "duration_seconds": metadata.duration_seconds,
            "num_frames": metadata.num_frames,
            "decoder": IMPORTED,
            "decoder_version": RULE_VERSION,
        }

    def _read(self, path: Path) -> torch.Tensor:
        """The features of one video, if they are like all others of the cache."""
        features = read_features(path)
        encoder = self._manifest.encoder
        found = STORAGE_DTYPES[features.dtype], features.shape[3]
        if found != (encoder.dtype, encoder.hidden_size):
            raise PreprocessError(
                f"{path} holds tokens of type {found[0]} and width {found[1]}, those of this "
                f"cache are {encoder.dtype} and {encoder.hidden_size}: another encoder made them; "
                "import them into a cache of their own"
            )
        return features


def _token_fields(plan: FusionPlan, width: int) -> dict[str, Any]:
    return {
        "grid_frames": plan.grid.frames,
        "grid_height": plan.grid.height,
        "grid_width": plan.grid.width,
        "tokens_before": plan.grid.num_tokens,
        "tokens_after": plan.num_kept,
        "keep_ratio": plan.keep_ratio,
        "anchor_frame": plan.anchor_frame,
        "nested": plan.nested,
        "hidden_size": width,
        "num_deepstack": 0,
    }
