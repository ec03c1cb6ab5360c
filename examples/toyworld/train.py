"""Train the toy world's Qwen3-VL from nothing.

    python -m examples.toyworld.train toy/model --seed 0

Three stages: the vision tower learns to look (labels and a coarse picture of what each token
covers), the language model learns to read its tokens (questions; the tower rests), then both learn
together. No token is ever fused. The same command goes on where a training was stopped; two cores
take about an hour and a half.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from examples.toyworld.checkpoint import fresh_model, train_tokenizer, write_checkpoint
from examples.toyworld.draw import draw_scene
from examples.toyworld.forward import PackedForward, prompt_of
from examples.toyworld.labels import FRAMES_PER_TOKEN, GROUPS
from examples.toyworld.lessons import (
    QUESTION_LENGTH,
    Lesson,
    Lessons,
    choose_questions,
    make_lesson,
)
from examples.toyworld.losses import TokenReader, Weights, answer_loss
from examples.toyworld.optimizer import MixedPrecision
from examples.toyworld.questions import KINDS
from examples.toyworld.scene import FIRST_SEEDS, LEVELS, NUM_FRAMES

NUM_QUESTIONS = 12
LOOKED_AT = 6
"""Token frames of each video that the first stage looks at."""

WARM_STEPS = 60
SAVE_EVERY = 250
CHECK_EVERY = 500
NUM_CHECKED, CHECKED_AT_ONCE = 64, 16


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training.

    Attributes:
        name: shown while it lasts.
        steps: how many.
        num_videos: of each step.
        rates: share of the highest learning rate at the first step and at the last.
        vision_rate: the tower's rate over the others'; 0: it rests.
        weights: of the loss at the first step and at the last.
        asks: whether questions are asked.
    """

    name: str
    steps: int
    num_videos: int
    rates: tuple[float, float]
    vision_rate: float
    weights: tuple[Weights, Weights]
    asks: bool = True


STAGES = (
    Stage("look", 1500, 16, (1.0, 0.02), 1.0, (Weights(label=1, picture=1),) * 2, asks=False),
    Stage("read", 2000, 12, (1.0, 1.0), 0.0, (Weights(hint=1.0), Weights(hint=0.5))),
    Stage(
        "both",
        3600,
        8,
        (1.0, 0.02),
        0.2,
        (Weights(hint=0.5, label=0.5, picture=0.5), Weights(label=0.2, picture=0.5)),
    ),
)


class Training:
    """One training: its weights, and how far it is.

    Args:
        folder: where the state and the checkpoint are kept.
        seed: of the first weights and of the scenes.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._rank, self._num_processes = 0, 1
        if dist.is_initialized():
            self._rank, self._num_processes = dist.get_rank(), dist.get_world_size()
        self._tokenizer = train_tokenizer()
        model = fresh_model(self._tokenizer, seed=seed)
        torch.manual_seed(seed)
        reader = TokenReader(self._tokenizer, model.config.text_config.hidden_size)
        self._modules = {"model": model, "reader": reader}
        self._mixed = MixedPrecision(self._modules)
        self._forward = PackedForward(
            self._mixed.working["model"],
            prompt_of(self._tokenizer),
            num_questions=NUM_QUESTIONS,
            length=QUESTION_LENGTH,
        )
        self._step = 0
        if self._state_path.exists():
            self._restore()

    @property
    def _state_path(self) -> Path:
        return self._folder / "training.pt"

    def _restore(self) -> None:
        state = torch.load(self._state_path, weights_only=True)
        for name, module in self._modules.items():
            module.load_state_dict(state["weights"][name])
        self._mixed.restore(state["optimizers"])
        self._step = state["step"]

    def _save(self) -> None:
        weights = {name: module.state_dict() for name, module in self._modules.items()}
        state = {"weights": weights, "optimizers": self._mixed.state(), "step": self._step}
        partial = self._state_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._state_path)

    def run(self) -> Iterator[dict[str, object]]:
        """Go through what is left of the stages; yields what to tell."""
        start = 0
        for stage in STAGES:
            stop = start + stage.steps
            if self._step < stop:
                yield from self._run_stage(stage, start, stop)
            start = stop
        if self._rank == 0:
            model = self._modules["model"].bfloat16()
            write_checkpoint(self._folder, model, self._tokenizer)

    def _run_stage(self, stage: Stage, start: int, stop: int) -> Iterator[dict[str, object]]:
        lessons = Lessons(
            self._tokenizer,
            seed=self._seed,
            numbers=range(self._step, stop),
            num_videos=stage.num_videos,
            num_questions=NUM_QUESTIONS,
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
            if self._step % 50 == 0 or self._step == stop:
                each = (time.monotonic() - began) / (self._step - first)
                yield {
                    "stage": stage.name,
                    "step": f"{place + 1}/{stage.steps}",
                    "videos_per_second": round(stage.num_videos / each, 1),
                    "minutes_left": round(each * (stop - self._step) / 60, 1),
                    **told,
                }
            is_due = self._step % CHECK_EVERY == 0 or self._step == stop
            if stage.asks and is_due and self._rank == 0:
                yield {"stage": stage.name, "step": self._step, "accuracy": self.check()}
            if self._rank == 0 and (self._step % SAVE_EVERY == 0 or self._step == stop):
                self._save()

    def _learn(self, lesson: Lesson, stage: Stage, share: float) -> dict[str, object]:
        """Leave the gradients of one lesson in the copies."""
        weights = _between_weights(*stage.weights, share)
        frames, labels = lesson.frames, lesson.labels
        if not stage.asks:
            frames, labels = self._some_frames(frames, labels)
        with torch.set_grad_enabled(stage.vision_rate > 0):
            visual, deepstack = self._forward.visual_tokens(frames)
        losses: list[Tensor] = []
        told: dict[str, object] = {}
        if stage.asks:
            logits = self._forward.logits(visual, deepstack, lesson.input_ids)
            losses.append(answer_loss(logits, lesson, weights, self._tokenizer.eos_token_id))
            told["answers"] = round(losses[-1].item(), 3)
        if stage.vision_rate > 0:
            table = self._mixed.working["model"].get_input_embeddings().weight
            loss, shares = self._mixed.working["reader"](visual, frames, labels, table, weights)
            losses.append(loss)
            told["labels"] = dict(zip(GROUPS, [round(s, 2) for s in shares.tolist()], strict=True))
            told["looking"] = round(loss.item(), 3)
        torch.stack(losses).sum().backward()
        return told

    def _some_frames(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self._seed, self._step))
        num_token_frames = NUM_FRAMES // FRAMES_PER_TOKEN
        chosen = torch.from_numpy(np.sort(rng.choice(num_token_frames, LOOKED_AT, replace=False)))
        pairs = frames.unflatten(1, (num_token_frames, FRAMES_PER_TOKEN))[:, chosen]
        return pairs.flatten(1, 2), labels[:, :, chosen]

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Share of right answers of each kind on videos never learnt from, and their mean."""
        right, asked = Counter[str](), Counter[str]()
        for first in range(0, NUM_CHECKED, CHECKED_AT_ONCE):
            seeds = range(first, first + CHECKED_AT_ONCE)
            scenes = [
                draw_scene(FIRST_SEEDS["validation"] + seed, LEVELS[seed % len(LEVELS)])
                for seed in seeds
            ]
            questions = [choose_questions(scene, NUM_QUESTIONS) for scene in scenes]
            lesson = make_lesson(scenes, questions, self._tokenizer)
            tokens = self._forward.visual_tokens(lesson.frames)
            found = self._forward.logits(*tokens, lesson.input_ids).argmax(-1)
            is_answer = (lesson.targets >= 0) & (lesson.targets != self._tokenizer.eos_token_id)
            is_right = ((found == lesson.targets) & is_answer).any(-1)
            for row, kinds in zip(is_right.tolist(), lesson.kinds, strict=True):
                asked.update(kinds)
                right.update(kind for kind, does in zip(kinds, row, strict=True) if does)
        shares = {kind: round(right[kind] / asked[kind], 3) for kind in KINDS if asked[kind]}
        return {**shares, "mean": round(sum(shares.values()) / len(shares), 3)}


def _between(first: float, last: float, share: float) -> float:
    return first + (last - first) * share


def _between_weights(first: Weights, last: Weights, share: float) -> Weights:
    return Weights(
        end=_between(first.end, last.end, share),
        hint=_between(first.hint, last.hint, share),
        label=_between(first.label, last.label, share),
        picture=_between(first.picture, last.picture, share),
    )


def train(rank: int, num_processes: int, folder: Path, seed: int) -> None:
    """One of the processes that train together; the first one tells how far they are."""
    torch.set_num_threads(1)
    if num_processes > 1:
        meeting = dist.FileStore(str(folder / "meeting"), num_processes)
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=num_processes)
    training = Training(folder, seed=seed)
    with (folder / "training.jsonl").open("a", encoding="utf-8") as log:
        for told in training.run():
            if rank == 0:
                line = json.dumps(told)
                log.write(line + "\n")
                log.flush()
                print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the checkpoint; made where it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes (default 0)")
    parser.add_argument("--processes", type=int, default=2, help="one per core (default 2)")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "meeting").unlink(missing_ok=True)
    processes = given.processes
    mp.spawn(train, (processes, given.folder, given.seed), nprocs=processes)
    (given.folder / "meeting").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
