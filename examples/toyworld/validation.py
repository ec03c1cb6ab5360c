"""How many questions a model in training answers rightly, on videos it never learns from."""

from collections import Counter

import torch
from transformers import Qwen2Tokenizer

from examples.toyworld.draw import draw_scene
from examples.toyworld.forward import NO_TARGET, PackedForward, prompt_of
from examples.toyworld.lessons import NUM_QUESTIONS, choose_questions, make_lesson
from examples.toyworld.questions import KINDS
from examples.toyworld.scene import FIRST_SEEDS

NUM_VIDEOS, AT_ONCE = 64, 16


@torch.no_grad()
def validate(forward: PackedForward, tokenizer: Qwen2Tokenizer) -> dict[str, float]:
    """Share of right answers of each kind, and their mean."""
    right, asked = Counter[str](), Counter[str]()
    prompt = prompt_of(tokenizer)
    for first in range(0, NUM_VIDEOS, AT_ONCE):
        scenes = [
            draw_scene(FIRST_SEEDS["validation"] + number)
            for number in range(first, first + AT_ONCE)
        ]
        questions = [choose_questions(scene, NUM_QUESTIONS) for scene in scenes]
        lesson = make_lesson(scenes, questions, tokenizer)
        tokens = forward.visual_tokens(lesson.frames)
        found = forward.logits(prompt, *tokens, lesson.input_ids).argmax(-1)
        is_end = lesson.targets == tokenizer.eos_token_id
        is_right = ((found == lesson.targets) & ~is_end & (lesson.targets != NO_TARGET)).any(-1)
        for row, kinds in zip(is_right.tolist(), lesson.kinds, strict=True):
            asked.update(kinds)
            right.update(kind for kind, does in zip(kinds, row, strict=True) if does)
    shares = {kind: round(right[kind] / asked[kind], 3) for kind in KINDS}
    return {**shares, "mean": round(sum(shares.values()) / len(shares), 3)}
