"""One training that goes through its stages."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from examples.toyworld.checkpoint import TEXT, fresh_model, train_tokenizer, write_checkpoint
from examples.toyworld.forward import PackedForward, prompt_of
from examples.toyworld.labels import GROUPS
from examples.toyworld.lessons import Lesson, Lessons
from examples.toyworld.losses import TokenReader, answer_loss
from examples.toyworld.optimizer import MixedPrecision
from examples.toyworld.stages import STAGES, Stage
from examples.toyworld.token_frames import (
    NUM_TOKEN_FRAMES,
    draw_keep_index,
    in_order,
    token_frames,
)
from examples.toyworld.training_state import read_state, training_kind, write_state
from examples.toyworld.validation import validate

LOOKED_AT = 6
"""Token frames of each video that the vision tower learns from; the others it only encodes."""

WARM_STEPS = 60
TELL_EVERY = 50
SAVE_EVERY = 250
CHECK_EVERY = 500


class Learner(nn.Module):
    """All that is trained: the model, and the reader of its tokens, which is thrown away."""

    def __init__(self, tokenizer: Qwen2Tokenizer, *, seed: int) -> None:
        super().__init__()
        self.model = fresh_model(tokenizer, seed=seed)
        torch.manual_seed(seed)
        self.reader = TokenReader(tokenizer, int(TEXT["hidden_size"]))


class Training:
    """One training: its weights, and how far it is.

    Args:
        folder: where the state and the checkpoint are kept.
        seed: of the first weights and of the scenes.
        stages: gone through one after the other.

    Raises:
        ConfigError: the folder holds a training of another kind.
    """

    def __init__(self, folder: Path, *, seed: int, stages: tuple[Stage, ...] = STAGES) -> None:
        self._folder = folder
        self._stages = stages
        self._seed = seed
        self._rank, self._num_processes = 0, 1
        if dist.is_initialized():
            self._rank, self._num_processes = dist.get_rank(), dist.get_world_size()
        self._tokenizer = train_tokenizer()
        self._mixed = MixedPrecision(Learner(self._tokenizer, seed=seed))
        self._forward = PackedForward(self._mixed.working.model)
        self._step = 0
        self._kind = training_kind(seed, self._num_processes, stages)
        state = read_state(folder, self._kind)
        if state:
            self._mixed.master.load_state_dict(state["weights"])
            self._mixed.restore(state["optimizers"])
            self._step = state["step"]

    def _save(self) -> None:
        state = {
            "weights": self._mixed.master.state_dict(),
            "optimizers": self._mixed.state(),
            "step": self._step,
        }
        write_state(self._folder, self._kind, state)

    def run(self) -> Iterator[dict[str, object]]:
        """Go through what is left of the stages; yields what to tell."""
        start = 0
        for stage in self._stages:
            stop = start + stage.steps
            if self._step < stop:
                yield from self._run_stage(stage, start, stop)
            start = stop
        if self._rank == 0:
            write_checkpoint(self._folder, self._mixed.working.model, self._tokenizer)

    def _run_stage(self, stage: Stage, start: int, stop: int) -> Iterator[dict[str, object]]:
        lessons = Lessons(
            self._tokenizer,
            seed=self._seed,
            numbers=range(self._step, stop),
            num_videos=stage.num_videos,
            part=(self._rank, self._num_processes),
        ).in_background()
        began, first = time.monotonic(), self._step
        for lesson in lessons:
            place = self._step - start
            share = place / max(1, stage.steps - 1)
            told = self._learn(lesson, stage, share)
            warm = min(1.0, (place + 1) / WARM_STEPS)
            rate = warm * _between(stage.rates[0], stage.rates[1], share)
            self._mixed.step(share=rate, vision_share=stage.vision_rate)
            self._step += 1
            if self._step % TELL_EVERY == 0 or self._step == stop:
                each = (time.monotonic() - began) / (self._step - first)
                yield {
                    "stage": stage.name,
                    "step": self._step,
                    "of_steps": sum(stage.steps for stage in self._stages),
                    "videos_per_second": round(stage.num_videos / each, 1),
                    "minutes_left_of_stage": round(each * (stop - self._step) / 60, 1),
                    **told,
                }
            is_due = self._step % CHECK_EVERY == 0 or self._step == stop
            if stage.asks and is_due and self._rank == 0:
                yield {
                    "stage": stage.name,
                    "step": self._step,
                    "accuracy": validate(self._forward, self._tokenizer),
                }
            if self._rank == 0 and (self._step % SAVE_EVERY == 0 or self._step == stop):
                self._save()

    def _learn(self, lesson: Lesson, stage: Stage, share: float) -> dict[str, object]:
        """Leave the gradients of one lesson in the copies."""
        weights = stage.weights[0].towards(stage.weights[1], share)
        looked_at, others = self._split_frames()
        losses: list[Tensor] = []
        told: dict[str, object] = {}
        with torch.set_grad_enabled(stage.vision_rate > 0):
            frames = token_frames(lesson.frames, looked_at)
            seen = self._forward.visual_tokens(frames)
        if stage.vision_rate > 0:
            learner = self._mixed.working
            table = learner.model.get_input_embeddings().weight
            labels = lesson.labels[:, :, looked_at]
            loss, shares = learner.reader(seen[0], frames, labels, table, weights)
            losses.append(loss)
            told["labels"] = dict(zip(GROUPS, [round(s, 2) for s in shares.tolist()], strict=True))
            told["looking"] = round(loss.item(), 3)
        if stage.asks:
            with torch.no_grad():
                rest = self._forward.visual_tokens(token_frames(lesson.frames, others))
            visual, deepstack = in_order(seen, rest, torch.cat([looked_at, others]))
            logits = self._logits(visual, deepstack, lesson, stage.least_kept)
            losses.append(answer_loss(logits, lesson, weights, self._tokenizer.eos_token_id))
            told["answers"] = round(losses[-1].item(), 3)
        torch.autograd.backward(losses)
        return told

    def _logits(
        self, visual: Tensor, deepstack: list[Tensor], lesson: Lesson, least_kept: float
    ) -> Tensor:
        """What follows each column of the questions, of the tokens that this step keeps."""
        rng = np.random.default_rng((self._seed, self._step, 1))
        keep_index = draw_keep_index(rng, least_kept)
        return self._forward.logits(
            prompt_of(self._tokenizer, keep_index),
            visual.index_select(1, keep_index),
            [layer.index_select(1, keep_index) for layer in deepstack],
            lesson.input_ids,
        )

    def _split_frames(self) -> tuple[Tensor, Tensor]:
        """Numbers of the token frames that are learnt from, and of the others."""
        rng = np.random.default_rng((self._seed, self._step))
        shuffled = torch.from_numpy(rng.permutation(NUM_TOKEN_FRAMES))
        return shuffled[:LOOKED_AT], shuffled[LOOKED_AT:]


def _between(first: float, last: float, share: float) -> float:
    return first + (last - first) * share
