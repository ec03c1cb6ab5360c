"""Attention of the toy model, written out: a CPU's fused one has a slow backward pass in bfloat16.

Dimension key: B videos, T token frames, V patches of a frame, D channels, H heads, Q questions of a
video, A columns of a question, P of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

CHUNK = 136
"""Columns of the prompt that look back together: a fourth of it."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the last dimension by the angles of its positions."""
    one, other = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-other, one], dim=-1) * sin


def look_within_frames(
    attention: qwen3_vl.Qwen3VLVisionAttention, x: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """Within each token frame; ``x`` is ``(B*T, V, D)``."""
    shape = (*x.shape[:2], 3, attention.num_heads, attention.head_dim)
    q, k, v = attention.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, cos, sin) * attention.scaling, rotate(k, cos, sin)
    mixed = torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
    out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Queries, keys and values ``(B, H, columns, head_dim)``, turned to their positions."""

    q: Tensor
    k: Tensor
    v: Tensor


def turned_heads(
    attention: qwen3_vl.Qwen3VLTextAttention, x: Tensor, rotary: tuple[Tensor, Tensor]
) -> Heads:
    """``x`` is ``(B, columns, D)``; cos and sin are ``(1, columns, head_dim)``."""
    shape = (*x.shape[:2], -1, attention.head_dim)
    cos, sin = (each[:, None] for each in rotary)
    q = attention.q_norm(attention.q_proj(x).view(shape)).transpose(1, 2)
    k = attention.k_norm(attention.k_proj(x).view(shape)).transpose(1, 2)
    v = attention.v_proj(x).view(shape).transpose(1, 2)
    groups = attention.num_key_value_groups
    return Heads(
        rotate(q, cos, sin) * attention.scaling,
        rotate(k, cos, sin).repeat_interleave(groups, dim=1),
        v.repeat_interleave(groups, dim=1),
    )


def look_back(prompt: Heads) -> Tensor:
    """Each column of the prompt looks at itself and those before it; ``(B, H, P, head_dim)``."""
    mixed = []
    for start in range(0, prompt.q.shape[2], CHUNK):
        q = prompt.q[:, :, start : start + CHUNK]
        stop = start + q.shape[2]
        hidden = torch.ones(q.shape[2], stop, dtype=torch.bool).triu(start + 1)
        scores = q @ prompt.k[:, :, :stop].transpose(-1, -2)
        scores = scores.masked_fill(hidden, torch.finfo(q.dtype).min)
        mixed.append(torch.softmax(scores, dim=-1) @ prompt.v[:, :, :stop])
    return torch.cat(mixed, dim=2)


def look_at_prompt_and_question(prompt: Heads, asked: Heads, num_questions: int) -> Tensor:
    """Each column of a question looks at the prompt and its own question up to itself.

    ``(B, H, Q*A, head_dim)``.
    """
    apart = (*asked.q.shape[:2], num_questions, -1, asked.q.shape[-1])
    q, k, v = (each.reshape(apart) for each in (asked.q, asked.k, asked.v))
    hidden = torch.ones(q.shape[3], q.shape[3], dtype=torch.bool).triu(1)
    own = (q @ k.transpose(-1, -2)).masked_fill(hidden, torch.finfo(q.dtype).min)
    shared = asked.q @ prompt.k.transpose(-1, -2)
    shares = torch.softmax(torch.cat([shared, own.flatten(2, 3)], dim=-1), dim=-1)
    num_prompt = prompt.k.shape[2]
    from_own = shares[..., num_prompt:].reshape(own.shape) @ v
    return shares[..., :num_prompt] @ prompt.v + from_own.flatten(2, 3)


def joined_heads(mixed: Tensor, attention: qwen3_vl.Qwen3VLTextAttention) -> Tensor:
    """What the heads of ``(B, H, columns, head_dim)`` found, as ``(B, columns, D)``."""
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return out
