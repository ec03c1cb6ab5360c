"""Vision encoders: resized frames in, merged visual tokens (and DeepStack layers) out."""

from pipeline.encoders.checkpoint import load_tokenizer
from pipeline.encoders.qwen3_vl import Qwen3VLEncoder, load_encoder
from pipeline.encoders.tokens import VisualTokens

__all__ = ["Qwen3VLEncoder", "VisualTokens", "load_encoder", "load_tokenizer"]
