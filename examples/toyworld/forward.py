"""The model's forward on many questions about each video at once, for training on a CPU.

The weights are those of a plain ``Qwen3VLForConditionalGeneration``; so are the logits, but for
rounding. All videos of a call have one prompt: the same size, length, timestamps and kept tokens.
Questions follow it side by side under a block-diagonal mask: each sees the video and itself, and
begins at the position at which it would stand alone. Prompt and questions are held apart, so that
no product of columns is formed that the mask would hide.

Dimension key: B videos, T token frames, N visual tokens and V patches of a frame, K kept tokens, S
DeepStack layers, D channels, H heads, Q questions of a video, A columns of a question, P of the
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration, vision_utils
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

from examples.toyworld.attention import (
    joined_heads,
    look_at_prompt_and_question,
    look_back,
    look_within_frames,
    turned_heads,
)
from examples.toyworld.checkpoint import DEVIATION, MEAN, PATCHES
from examples.toyworld.scene import FRAMES_PER_SECOND, NUM_FRAMES, SIDE
from pipeline.assemble import tokenized_stretch
from pipeline.positions import frame_timestamps
from pipeline.prefill import split_prompt
from pipeline.preprocess import patchify

NO_TARGET = -100


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What comes before every question: ids, positions and the columns of visual tokens.

    Attributes:
        input_ids: ``(P,)`` int64.
        position_ids: ``(3, P)`` int64.
        visual_columns: ``(K,)`` int64, ascending.
        next_position: where a question begins.
    """

    input_ids: Tensor
    position_ids: Tensor
    visual_columns: Tensor
    next_position: int


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Questions of several videos, filled up to one length.

    Attributes:
        input_ids: ``(B, Q, A)`` int64: the question, the turn of the assistant, the answer.
        targets: ``(B, Q, A)`` int64, what should follow each column: the answer, then the end of
            the turn; ``NO_TARGET`` elsewhere.
    """

    input_ids: Tensor
    targets: Tensor


def prompt_of(tokenizer: PreTrainedTokenizerBase, keep_index: Tensor | None = None) -> Prompt:
    """The prompt of any toy video.

    Args:
        tokenizer: of the checkpoint.
        keep_index: ``(K,)`` int64, ascending: which visual tokens it has; default all.
    """
    grid = PATCHES.token_grid(NUM_FRAMES, SIDE, SIDE)
    if keep_index is None:
        keep_index = torch.arange(grid.num_tokens)
    seconds = frame_timestamps(
        np.arange(NUM_FRAMES), FRAMES_PER_SECOND, PATCHES.temporal_patch_size
    )
    stretch = tokenized_stretch(grid, keep_index, seconds, tokenizer)
    before = torch.tensor(split_prompt(tokenizer, "", num_videos=1)[0])
    start = len(before)
    text = torch.arange(start).expand(3, -1)
    return Prompt(
        input_ids=torch.cat([before, stretch.input_ids]),
        position_ids=torch.cat([text, stretch.position_ids.long() + start], dim=1),
        visual_columns=stretch.visual_index + start,
        next_position=stretch.next_position + start,
    )


def pack(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Sequence[tuple[str, str]]], *, length: int
) -> Packed:
    """Questions and answers as columns.

    Args:
        tokenizer: of the checkpoint.
        asked: for each video as many (question, answer) pairs; an answer is one token.
        length: A; a longer question raises ValueError.
    """
    pad = tokenizer.pad_token_id
    input_ids = torch.full((len(asked), len(asked[0]), length), pad)
    targets = torch.full_like(input_ids, NO_TARGET)
    for b, pairs in enumerate(asked):
        for q, (question, answer) in enumerate(pairs):
            text = split_prompt(tokenizer, question, num_videos=1)[1]
            [answer_id] = tokenizer(answer, add_special_tokens=False)["input_ids"]
            columns = [*text, answer_id]
            if len(columns) > length:
                raise ValueError(f"{question!r} takes {len(columns)} columns, not {length}")
            input_ids[b, q, : len(columns)] = torch.tensor(columns)
            targets[b, q, len(text) - 1] = answer_id
            targets[b, q, len(text)] = tokenizer.eos_token_id
    return Packed(input_ids, targets)


class PackedForward:
    """The forward of one model; its weights may change between calls.

    Args:
        model: in any floating type.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        self._model = model
        side = SIDE // PATCHES.patch_size
        self._grid_thw = torch.tensor([[1, side, side]])

    def visual_tokens(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings ``(B, T*N, D)`` and S DeepStack layers of the same shape.

        Args:
            frames: ``(B, NUM_FRAMES, SIDE, SIDE, 3)`` uint8.
        """
        tower = self._model.model.visual
        rows = patchify(frames.flatten(0, 1), PATCHES) / 255
        rows = (rows.flatten(1) - MEAN) / DEVIATION
        weight = tower.patch_embed.proj.weight
        x = torch.nn.functional.linear(
            rows.to(weight.dtype), weight.flatten(1), tower.patch_embed.proj.bias
        )
        num_patches = int(self._grid_thw.prod())
        x = x.view(-1, num_patches, x.shape[-1])
        x = x + self._place_embeddings(tower).to(x.dtype)
        place = vision_utils.get_vision_position_ids(
            self._grid_thw, tower.spatial_merge_size, kwargs={}
        )
        cos, sin = (each[None, None].to(x.dtype) for each in tower.rotary_pos_emb(x, place))
        shape = len(frames), -1, tower.config.out_hidden_size
        deepstack = []
        for number, block in enumerate(tower.blocks):
            x = x + look_within_frames(block.attn, block.norm1(x), cos, sin)
            x = x + block.mlp(block.norm2(x))
            if number in tower.deepstack_visual_indexes:
                layer = tower.deepstack_visual_indexes.index(number)
                deepstack.append(tower.deepstack_merger_list[layer](x).view(shape))
        return tower.merger(x).view(shape), deepstack

    def logits(
        self, before: Prompt, visual: Tensor, deepstack: Sequence[Tensor], input_ids: Tensor
    ) -> Tensor:
        """What follows each column of each question, ``(B, Q, A, vocabulary)``.

        Args:
            before: the prompt before the questions.
            visual: ``(B, K, D)``: its tokens, of ``visual_tokens``.
            deepstack: S of the same shape.
            input_ids: ``(B, Q, A)``.
        """
        text = self._model.model.language_model
        prompt = text.embed_tokens(before.input_ids).expand(len(input_ids), -1, -1)
        columns = before.visual_columns
        prompt = prompt.index_copy(1, columns, visual)
        asked = text.embed_tokens(input_ids)
        shape = asked.shape
        asked = asked.flatten(1, 2)
        places = torch.arange(shape[2]).repeat(shape[1]) + before.next_position
        prompt_turn, question_turn = (
            text.rotary_emb(prompt, positions[:, None])
            for positions in (before.position_ids, places.expand(3, -1))
        )
        for number, layer in enumerate(text.layers):
            attention = layer.self_attn
            seen = turned_heads(attention, layer.input_layernorm(prompt), prompt_turn)
            own = turned_heads(attention, layer.input_layernorm(asked), question_turn)
            asked = asked + joined_heads(
                look_at_prompt_and_question(seen, own, shape[1]), attention
            )
            asked = asked + layer.mlp(layer.post_attention_layernorm(asked))
            if number == len(text.layers) - 1:
                break
            prompt = prompt + joined_heads(look_back(seen), attention)
            prompt = prompt + layer.mlp(layer.post_attention_layernorm(prompt))
            if number < len(deepstack):
                prompt = prompt.index_add(1, columns, deepstack[number])
        logits: Tensor = self._model.lm_head(text.norm(asked))
        return logits.view(*shape[:3], -1)

    def _place_embeddings(self, tower: qwen3_vl.Qwen3VLVisionModel) -> Tensor:
        """Learnt embeddings of the patches' places, ``(V, D)``, interpolated as the tower does."""
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            self._grid_thw,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.config.spatial_merge_size,
            kwargs={},
        )
        embeddings: Tensor = tower.pos_embed(indices)
        return (embeddings * weights[:, :, None]).sum(1)
