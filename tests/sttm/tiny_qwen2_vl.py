"""A tiny Qwen2-VL with random weights, and clips that went through its own vision tower."""

from dataclasses import dataclass

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from pipeline.assemble import marker_ids
from pipeline.encoders.tiny import WEIGHT_SCALE
from schemas.grid import TokenGrid


def make_model(tokenizer, dtype=torch.float32, attention="sdpa"):
    """The whole model, with the ids of ``tokenizer``; 64 channels wide."""
    markers = marker_ids(tokenizer)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=markers.video_pad,
        vision_start_token_id=markers.vision_start,
        vision_end_token_id=markers.vision_end,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(WEIGHT_SCALE)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.to(dtype)


@dataclass(frozen=True)
class Pixels:
    """Random pixel values of one video, cut into patches as Qwen2-VL's processor cuts them."""

    grid: TokenGrid
    seed: int

    @property
    def grid_thw(self):
        return [self.grid.frames, 2 * self.grid.height, 2 * self.grid.width]

    @property
    def values(self):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn((4 * self.grid.num_tokens, 3 * 2 * 14 * 14), generator=generator)

    def features(self, model):
        """``(T, H, W, C)``, as STTM's extraction saves them."""
        with torch.inference_mode():
            output = model.get_video_features(
                self.values.to(model.dtype), torch.tensor([self.grid_thw])
            )
        sides = (self.grid.frames, self.grid.height, self.grid.width)
        return torch.cat(list(output.pooler_output)).view(*sides, -1).clone()


def own_inputs(tokenizer, videos, before, question):
    """What Qwen2-VL's own processor gives for the same chat: one pair of markers per video."""
    pads = ["<|video_pad|>" * video.grid.num_tokens for video in videos]
    places = [f"<|vision_start|>{pad}<|vision_end|>" for pad in pads]
    text = f"{before}{''.join(places)}{question}<|im_end|>\n<|im_start|>assistant\n"
    input_ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values_videos": torch.cat([video.values for video in videos]),
        "video_grid_thw": torch.tensor([video.grid_thw for video in videos]),
        "mm_token_type_ids": (input_ids == marker_ids(tokenizer).video_pad).int() * 2,
    }
