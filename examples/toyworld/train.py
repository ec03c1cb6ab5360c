"""Train the toy world's Qwen3-VL from nothing.

    python -m examples.toyworld.train toy/model --seed 0

Three stages: the vision tower learns to look (labels and a coarse picture of what each token
covers), the language model learns to read its tokens (questions; the tower rests), then both learn
together. No token is ever fused. The same command goes on where a training was stopped; two cores
take 55 to 80 minutes.

--drop-tokens makes another model, used to missing tokens: in the last stage half of the lessons, by
chance, keep only 10 to 100 % of their visual tokens.
"""

import argparse
import fcntl
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.toyworld.arguments import at_least
from schemas.errors import ConfigError

LOG_NAME = "training.jsonl"
"""Where progress is kept; locked by the one command that trains in a folder."""


def train(rank: int, num_processes: int, folder: Path, seed: int, drops_tokens: bool) -> None:
    """One of the processes that train together; the first one tells how far they are."""
    import torch
    import torch.distributed as dist

    from examples.toyworld.stages import stages_of
    from examples.toyworld.training import Training

    torch.set_num_threads(1)
    if num_processes > 1:
        meeting = (folder / "meeting").resolve().as_uri()
        dist.init_process_group("gloo", meeting, rank=rank, world_size=num_processes)
    training = Training(folder, seed=seed, stages=stages_of(drops_tokens=drops_tokens))
    with (folder / LOG_NAME).open("a", encoding="utf-8") as log:
        for told in training.run():
            if rank == 0:
                line = json.dumps(told)
                log.write(line + "\n")
                log.flush()
                print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; heavy imports wait until it is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the checkpoint; made where it is not there")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of weights and scenes (default 0)"
    )
    parser.add_argument("--processes", type=at_least(1), default=2, help="one per core (default 2)")
    parser.add_argument(
        "--drop-tokens", action="store_true", help="in half of the last stage's lessons"
    )
    given = parser.parse_args(arguments)
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        log = (given.folder / LOG_NAME).open("a", encoding="utf-8")
    except OSError as error:
        parser.error(f"cannot write to the folder {given.folder}: {error.strerror}")
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.error(f"another process trains in {given.folder}; wait, or give another folder")
        try:
            _run(given.folder, given.processes, given.seed, given.drop_tokens)
        except ConfigError as error:
            parser.error(str(error))


def _run(folder: Path, processes: int, seed: int, drops_tokens: bool) -> None:
    """Start the processes, unless the folder holds another training."""
    from torch.multiprocessing.spawn import spawn

    from examples.toyworld.stages import stages_of
    from examples.toyworld.training_state import read_state, training_kind

    stages = stages_of(drops_tokens=drops_tokens)
    read_state(folder, training_kind(seed, processes, stages))
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    asked = (processes, folder, seed, drops_tokens)
    spawn(train, asked, nprocs=processes)  # type: ignore[no-untyped-call]
    meeting.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
