"""How the families STTM extracted features from write a video into their prompts.

The stretch of an imported video is its placeholders alone: the markers round it are the chat
template's. Dimension key: N kept tokens.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.positions import PromptStretch, coordinates
from schemas.errors import ConfigError, ModelError
from schemas.grid import PatchGeometry, TokenGrid

NEWLINES = ("grid", "frame", "one_token", "no_token")
"""Where LLaVA's code puts a learnt newline: after each row, each frame, the video, nowhere."""


@dataclass(frozen=True, slots=True)
class PromptRule:
    """How a model family writes one video into its prompt.

    ``pad`` is the id that stands for one token. ``newline`` is one of ``NEWLINES`` for a family
    that numbers its columns one by one, and None for one with positions on the grid (M-RoPE).
    ``width`` is that of the language model where it is known.
    """

    model_type: str
    patches: PatchGeometry
    pad: int
    newline: str | None = None
    width: int | None = None


_RULES = {
    "qwen2_vl": PromptRule("qwen2_vl", PatchGeometry(14, 2, 2), 151656),
    "llava_onevision": PromptRule("llava_onevision", PatchGeometry(14, 1, 1), 151647),
}

MODEL_TYPES = tuple(_RULES)
"""Families whose prompts are known, by their names in transformers."""


def prompt_rule(
    model_type: str, *, newline: str | None = None, directory: Path | None = None
) -> PromptRule:
    """The rule of a family, with the id of ``directory/config.json`` or the published one.

    Raises:
        ConfigError: an unknown family, or a newline too many or too few.
        ModelError: the directory holds another family, or does not tell the id.
    """
    if model_type not in _RULES:
        raise ConfigError(
            f"the prompt of model type {model_type!r} is not known: expected one of {MODEL_TYPES}"
        )
    has_newline = model_type == "llava_onevision"
    if has_newline and newline not in NEWLINES:
        raise ConfigError(
            f"{model_type} puts a learnt newline between visual tokens, and the files do not say "
            f"where: say newline as one of {NEWLINES}, as mm_newline_position of the evaluation"
        )
    if newline is not None and not has_newline:
        raise ConfigError(f"{model_type} has no newlines between visual tokens; leave newline out")
    rule = dataclasses.replace(_RULES[model_type], newline=newline)
    return rule if directory is None else _with_id(rule, directory)


def _with_id(rule: PromptRule, directory: Path) -> PromptRule:
    from pipeline.model_folder import read_json

    config = read_json(directory / "config.json")
    if config.get("model_type") != rule.model_type:
        raise ModelError(
            f"{directory} holds a model of type {config.get('model_type')!r}, expected "
            f"{rule.model_type!r}: give the checkpoint that made the features"
        )
    pad = config.get("video_token_id", config.get("video_token_index"))
    if type(pad) is not int or not 0 <= pad < 2**31:
        raise ModelError(
            f"{directory / 'config.json'} has video_token_id = {pad!r}, expected a token id: use "
            "the checkpoint's own file, or leave the model out for the published id"
        )
    width = config.get("hidden_size", (config.get("text_config") or {}).get("hidden_size"))
    return dataclasses.replace(rule, pad=pad, width=width)


def video_stretch(grid: TokenGrid, keep_index: Tensor, rule: PromptRule) -> PromptStretch:
    """The stretch of one video: one placeholder for each kept token, positions from 0.

    A token has the position it had among all tokens of the grid, and what follows has the largest
    position of the whole video plus one. M-RoPE: a position is (t, y, x). One by one: it is the
    place among tokens and newlines, the same in all three rows; newlines are no tokens and have no
    column.

    Args:
        grid: the grid of all tokens.
        keep_index: ``(N,)`` ascending grid indices of the kept tokens.
        rule: the family's.
    """
    keep = keep_index.cpu()
    positions_3N, next_position = _positions(grid, keep, rule.newline)
    return PromptStretch(
        input_ids=torch.full((len(keep),), rule.pad),
        position_ids=positions_3N,
        visual_index=torch.arange(len(keep)),
        visual_grid_index=keep,
        next_position=next_position,
    )


def _positions(grid: TokenGrid, keep: Tensor, newline: str | None) -> tuple[Tensor, int]:
    """Positions ``(3, N)`` int32 of kept tokens, and the position after the whole video."""
    if newline is None:
        return coordinates(keep, grid).T, max(grid.frames, grid.height, grid.width)
    run = {"grid": grid.width, "frame": grid.tokens_per_frame}.get(newline, grid.num_tokens)
    num_newlines = 0 if newline == "no_token" else grid.num_tokens // run
    places = (keep + torch.div(keep, run, rounding_mode="floor")).to(torch.int32)
    return places.expand(3, -1), grid.num_tokens + num_newlines
