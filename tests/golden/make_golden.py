"""Makes the golden caches: small, frozen, and readable by every later version.

Run: python -m tests.golden.make_golden NAME... (a folder that exists is never overwritten)
What is in the repository was written once. A change of the format is a new format version, and new
golden caches beside the old ones.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.assemble import encode_pending
from pipeline.cache import TokenCache, open_cache
from pipeline.storage import open_storage
from pipeline.store.commit import commit_videos
from pipeline.store.compact import compact_cache
from pipeline.store.manifest import create_or_check
from schemas.fusion import FusionConfig
from schemas.manifest import Manifest, StoreIdentity
from tests.store.sample_cache import MANIFEST, failed_row, make_sample

FOLDER = Path(__file__).parent

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

ASKED = ({}, {"budget": 1}, {"budget": 0.25}, {"budget": 17}, {"threshold": 0.3})

TENSORS = ("features", "coordinates", "score", "input_ids", "position_ids", "visual_index", "match")


def manifest_of(dtype: str, encoding: str, fusion: FusionConfig) -> Manifest:
    encoder = replace(MANIFEST.encoder, dtype=dtype.upper())
    return replace(MANIFEST, encoder=encoder, fusion=fusion, store=StoreIdentity(encoding))


def make(name: str) -> None:
    """``<dtype>-<encoding>``, and ``-grid`` or ``-buckets`` behind it."""
    root = FOLDER / name
    root.mkdir()
    dtype, encoding, *special = name.split("-")
    is_nested = "grid" not in special
    fusion = FusionConfig() if is_nested else FusionConfig(method="uniform", budget=40)
    manifest = manifest_of(dtype, encoding, fusion)
    storage = open_storage(root)
    create_or_check(storage, manifest)
    changes = {"nested": is_nested, "fingerprint": manifest.fingerprint}
    samples = [make_sample(seed=n, dtype=DTYPES[dtype]) for n in range(3)]
    names = ("a.mp4", "sub/b c.mp4", "视频/é.mkv", "twin.mp4")
    one, two, other, twin = (
        encode_pending(samples[n % 3].pending(name, key=f"{n % 3:064x}", **changes), encoding)
        for n, name in enumerate(names)
    )
    lost = failed_row("broken.mp4", fingerprint=manifest.fingerprint)
    commit_videos(storage, [one, two, twin])
    commit_videos(storage, [other, lost])
    if "buckets" in special:
        compact_cache(storage, grace_seconds=0, bucket_from_rows=2)
        later = make_sample(seed=9, dtype=DTYPES[dtype])
        again = later.pending("a.mp4", key="9" * 64, created_ns=99, **changes)
        commit_videos(storage, [encode_pending(again, encoding)])
    expected = json.dumps(expectation(open_cache(root)), indent=1, sort_keys=True) + "\n"
    (root / "expected.json").write_text(expected)


def expectation(cache: TokenCache) -> dict[str, object]:
    """What a reader must find: rows, and a digest of every tensor at every budget."""
    loads = {}
    for video_id in cache.ids():
        is_nested = cache.row(video_id).nested
        for asked in ASKED if is_nested else ({},):
            video = cache.load(video_id, **asked)
            digests = {name: digest(getattr(video, name)) for name in TENSORS}
            facts = {"tokens": video.num_tokens, "next_position": video.next_position, **digests}
            loads[f"{video_id} {json.dumps(asked)}"] = facts
    rows = cache.query("SELECT video_id, status, created_ns FROM index ORDER BY video_id")
    return {"fingerprint": cache.fingerprint, "rows": rows.to_pylist(), "loads": loads}


def digest(tensor: torch.Tensor) -> str:
    """sha256 of type, shape and bytes."""
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    about = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(about + data).hexdigest()


if __name__ == "__main__":
    for golden in sys.argv[1:]:
        make(golden)
