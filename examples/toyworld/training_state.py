"""How far a training is, kept in a file, and which training it is of."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.toyworld.stages import Stage
from schemas.errors import ConfigError

FILE_NAME = "training.pt"


@dataclass(frozen=True, slots=True)
class TrainingKind:
    """What decides the weights: a training that was begun goes on with the same only.

    Attributes:
        seed: of the first weights and of the scenes.
        processes: that share each lesson.
        stages: all of them, written out.
        sources: digest of this package's modules.
    """

    seed: int
    processes: int
    stages: str
    sources: str

    def differences(self, other: "TrainingKind") -> list[str]:
        """What differs from another one, short enough for a message."""
        found = [
            f"{name} {getattr(other, name)}, now {getattr(self, name)}"
            for name in ("seed", "processes")
            if getattr(self, name) != getattr(other, name)
        ]
        if self.stages != other.stages:
            found.append("other stages (--drop-tokens or not)")
        if self.sources != other.sources:
            found.append("another state of examples/toyworld")
        return found


def training_kind(seed: int, processes: int, stages: tuple[Stage, ...]) -> TrainingKind:
    """The kind of a training with the modules as they are now."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in modules))
    return TrainingKind(seed, processes, repr(stages), sources.hexdigest()[:12])


def read_state(folder: Path, kind: TrainingKind) -> dict[str, Any] | None:
    """Weights, optimizers and step of a training that was begun; None where none was.

    Raises:
        ConfigError: it is of another kind, or cannot be read.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        begun = TrainingKind(**state.pop("kind"))
    except Exception as error:  # torch.load of damaged bytes raises nearly any kind
        raise ConfigError(
            f"{path} is no training that can go on ({type(error).__name__}); remove it to begin "
            "anew, or give another folder"
        ) from error
    differences = kind.differences(begun)
    if differences:
        raise ConfigError(
            f"{folder} holds a training with {', '.join(differences)}; give another folder"
        )
    return state


def write_state(folder: Path, kind: TrainingKind, state: dict[str, Any]) -> None:
    """Replace the file as a whole."""
    path = folder / FILE_NAME
    partial = path.with_suffix(".partial")
    torch.save({**state, "kind": dataclasses.asdict(kind)}, partial)
    partial.replace(path)
