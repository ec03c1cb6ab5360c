"""Decoding: sampled frames of one video, the right ones, from a process that may die.

Only ``FrameReader`` runs in the caller's process; FFmpeg and decord run in its child alone.
"""

from pipeline.decode.reader import FrameReader, decoder_versions

__all__ = ["FrameReader", "decoder_versions"]
