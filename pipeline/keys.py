"""Digests that tell videos and features apart."""

import hashlib
from pathlib import Path

from schemas.video import SampledFrames


def content_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def feature_key(content_sha256: str, fingerprint: str, sampled: SampledFrames) -> str:
    """sha256 of everything that decides the features: content, configuration and decoder."""
    parts = (content_sha256, fingerprint, sampled.decoder, sampled.decoder_version)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
