"""A complete but tiny Qwen3-VL checkpoint with random weights, made offline.

It has the file layout and every mechanism of the real ones (three DeepStack layers, interleaved
M-RoPE, timestamps, chat template), so that exactness can be shown on it. It cannot answer anything.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from pipeline.encoders.checkpoint import quiet_loading

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

_CLASSES: dict[bool, tuple[Any, Any]] = {
    False: (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    True: (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
}

WEIGHT_SCALE = 8.0
"""Default initialisation gives nearly constant logits; wider weights make a wrong position show."""


def write_tiny_checkpoint(
    directory: Path, *, seed: int = 0, moe: bool = False, max_pixels: int = 32 * 32 * 768
) -> Path:
    """Write a checkpoint directory that ``from_pretrained`` loads; float32, about 2 MB.

    Args:
        directory: made if absent.
        seed: of the weights.
        moe: a mixture-of-experts language model (``qwen3_vl_moe``).
        max_pixels: pixel budget of a whole video (``size.longest_edge``).
    """
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(alphabet)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(directory)
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS
    }
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(seed)
        model = _tiny_model(ids, vocab_size=len(tokenizer), moe=moe)
        model.save_pretrained(directory)
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": max_pixels}
    _write_processor(directory / "video_preprocessor_config.json", size, "video_processor_type")
    _write_processor(directory / "preprocessor_config.json", size, "image_processor_type")
    return directory


def _tiny_model(ids: dict[str, Any], *, vocab_size: int, moe: bool) -> Any:
    text: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 262144,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_interleaved": True,
            "mrope_section": [4, 2, 2],
        },
    }
    if moe:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    config_class, model_class = _CLASSES[moe]
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(WEIGHT_SCALE)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def _write_processor(path: Path, size: dict[str, int], type_field: str) -> None:
    names = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    settings = {
        "size": size,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        type_field: names[type_field],
    }
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
