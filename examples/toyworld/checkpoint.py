"""A small Qwen3-VL for the toy world: tokenizer, processor settings and fresh weights.

All is of the real classes, only small: DeepStack, interleaved M-RoPE, timestamps, the chat
template. A visual token is 16 pixels wide: a picture of 96 has 6x6 of them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from examples.toyworld.draw import draw_scene
from examples.toyworld.questions import ask
from examples.toyworld.scene import FIRST_SEEDS, FRAMES_PER_SECOND, NUM_FRAMES, SIDE
from pipeline.encoders.checkpoint import quiet_loading
from pipeline.encoders.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS
from schemas.grid import PatchGeometry

PATCHES = PatchGeometry(patch_size=8, temporal_patch_size=2, spatial_merge_size=2)

MEAN = DEVIATION = 0.5
"""Of pixels from 0 to 1, in all channels."""

_READ_SCENES = 600
"""Scenes whose questions the tokenizer learns its words from: all words occur in them."""

VISION = {
    "depth": 4,
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_heads": 3,
    "patch_size": PATCHES.patch_size,
    "spatial_merge_size": PATCHES.spatial_merge_size,
    "temporal_patch_size": PATCHES.temporal_patch_size,
    "num_position_embeddings": (SIDE // PATCHES.patch_size) ** 2,
    "deepstack_visual_indexes": [1, 2],
}

TEXT = {
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}

ROPE = {
    "rope_type": "default",
    "rope_theta": 1e6,
    "mrope_interleaved": True,
    "mrope_section": [6, 5, 5],
}


TABLE_DEVIATION = 0.08
"""Of fresh embeddings of words and places."""


def train_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE of the toy world's words; every answer is one token. Always the same."""
    first = FIRST_SEEDS["train"]
    scenes = (draw_scene(first + number) for number in range(_READ_SCENES))
    questions = [question for scene in scenes for question in ask(scene)]
    last = NUM_FRAMES / FRAMES_PER_SECOND
    seconds = [f"<{tenth / 10:.1f} seconds>" for tenth in range(int(10 * last) + 1)]
    texts = sorted({question.text for question in questions})
    answers = sorted({question.answer for question in questions})
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator([*texts, *answers, *seconds, "user\n", "assistant\n"], trainer)
    learnt = json.loads(learner.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )


def fresh_model(tokenizer: Qwen2Tokenizer, *, seed: int) -> Qwen3VLForConditionalGeneration:
    """A model with random weights, in float32; embeddings are tied."""
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS
    }
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": ROPE,
        },
        vision_config={**VISION, "out_hidden_size": TEXT["hidden_size"]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        _draw_weights(model)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


@torch.no_grad()
def _draw_weights(model: Qwen3VLForConditionalGeneration) -> None:
    """Matrices keep the size of what passes them; what is added to a residual begins small."""
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        is_table = "embed_tokens" in name or "pos_embed" in name
        deviation = TABLE_DEVIATION if is_table else weight[0].numel() ** -0.5
        weight.normal_(0, deviation * _residual_share(name))


def _residual_share(name: str) -> float:
    if "deepstack_merger_list" in name and "fc2" in name:
        return 0.1
    ends_block = "visual.blocks" in name and ("attn.proj" in name or "linear_fc2" in name)
    return 0.5 if ends_block or "o_proj" in name or "down_proj" in name else 1.0


def write_checkpoint(
    directory: Path, model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer
) -> None:
    """Write a directory that ``from_pretrained`` and ``tokenreel build --model`` take."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    with quiet_loading():
        model.save_pretrained(directory)
    settings = {
        "size": {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE * NUM_FRAMES},
        "patch_size": PATCHES.patch_size,
        "temporal_patch_size": PATCHES.temporal_patch_size,
        "merge_size": PATCHES.spatial_merge_size,
        "image_mean": [MEAN] * 3,
        "image_std": [DEVIATION] * 3,
        "processor_class": "Qwen3VLProcessor",
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "video_preprocessor_config.json").write_text(text, encoding="utf-8")
