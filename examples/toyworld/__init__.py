"""A world of small videos with known answers, and a small Qwen3-VL trained on it."""

from pathlib import Path

TRAINED = Path(__file__).parent / "model"
"""The trained checkpoint that comes with the project."""
