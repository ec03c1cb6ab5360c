"""Feature types by their torch and their safetensors names."""

import torch

STORAGE_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

TORCH_DTYPES = {name: dtype for dtype, name in STORAGE_DTYPES.items()}
