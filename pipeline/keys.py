"""Digests that tell videos and features apart."""

import hashlib

from schemas.video import SampledFrames


def feature_key(content_sha256: str, fingerprint: str, sampled: SampledFrames) -> str:
    """sha256 of everything that decides the features: content, configuration and decoder."""
    parts = (content_sha256, fingerprint, sampled.decoder, sampled.decoder_version)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
