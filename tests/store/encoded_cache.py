"""Caches of samples stored with any encoding, and what loading them must give."""

from dataclasses import replace

import torch
from safetensors import safe_open

from pipeline.assemble import encode_pending
from pipeline.storage import open_storage
from pipeline.store.commit import commit_videos
from pipeline.store.fp8 import decode_fp8, encode_fp8
from pipeline.store.manifest import create_or_check
from schemas.grid import TokenGrid
from schemas.manifest import StoreIdentity
from tests.store.sample_cache import MANIFEST, make_sample, shard_of

COMPACT = ("zstd", "fp8")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def build(location, encoding, *samples, also=()):
    """A cache of samples called "0", "1" and so on; returns their index rows."""
    manifest = replace(MANIFEST, store=StoreIdentity(encoding))
    create_or_check(open_storage(location), manifest)
    pending = [
        sample.pending(f"{n}", key=f"{n}" * 64, fingerprint=manifest.fingerprint)
        for n, sample in enumerate(samples)
    ]
    encoded = [encode_pending(video, encoding) for video in pending]
    return commit_videos(open_storage(location), [*encoded, *also])


def large_sample(**changes):
    return make_sample(grid=TokenGrid(4, 16, 16), num_rows=500, hidden_size=128, **changes)


def expected_rows(sample, encoding):
    """What a full load must give, in storage order."""
    features = sample.tensors["features"]
    if encoding != "fp8":
        return features
    codes, scale = encode_fp8(features, 1 + sample.num_deepstack)
    decoded = torch.empty_like(features)
    decode_fp8(codes, scale, decoded)
    return decoded


def expected_prefix(sample, encoding, count):
    order = sample.tensors["prompt_index"][:count].argsort()
    return expected_rows(sample, encoding)[order]


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def stored_tensor(root, row, name):
    with safe_open(shard_of(root), framework="np") as shard:
        return shard.get_tensor(f"{row.key}/{name}")
