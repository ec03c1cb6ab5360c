"""The file in which a checkpoint keeps the settings of its video processor, read value by value."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.model_folder import read_json
from schemas.config import PROCESSOR_SAMPLING
from schemas.errors import ModelError
from schemas.manifest import RESCALE_FACTOR

PROCESSOR_CLASS = "Qwen3VLVideoProcessor"

PROCESSOR_FILES = (
    "processor_config.json",
    "video_preprocessor_config.json",
    "preprocessor_config.json",
)
"""In the order in which transformers asks for them; the first counts if it has a ``NESTED`` key."""

NESTED = "video_processor"

CLASS_DEFAULTS: Mapping[str, Any] = {
    "fps": PROCESSOR_SAMPLING.fps,
    "min_frames": PROCESSOR_SAMPLING.min_frames,
    "max_frames": PROCESSOR_SAMPLING.max_frames,
    "do_sample_frames": True,
    "do_resize": True,
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
    "resample": 3,
    "max_video_tokens": 768,
    "do_rescale": True,
    "rescale_factor": RESCALE_FACTOR,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
"""Values of the class for what a checkpoint leaves out; what is not listed is None."""

MEND = "change it in that file"
"""What to do about a value that a build cannot override."""


@dataclass(frozen=True, slots=True)
class ProcessorFile:
    """What a file says; ``get`` adds the class's defaults. A null stays one, as in transformers."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        return self.values.get(key, CLASS_DEFAULTS.get(key))

    def require(self, holds: bool, key: str, expected: str, advice: str = MEND) -> None:
        """Raise ModelError naming the key and its value unless ``holds``."""
        if not holds:
            value = reprlib.repr(self.get(key))
            raise ModelError(
                f"{self.path}: {key} = {value} is not possible: expected {expected}; {advice}"
            )

    def whole(self, key: str, low: int, high: int | None = None, advice: str = MEND) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.get(key)
        fits = type(value) is int and is_number(value, low, math.inf if high is None else high)
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        self.require(fits, key, f"a whole number, {expected}", advice)
        return int(value)


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    """Whether a JSON value is a number from ``low`` to ``high`` and no larger than 64 bits hold.

    True and false are no numbers.
    """
    return type(value) in (int, float) and abs(value) < 2**63 and low <= value <= high


def find_processor_file(directory: Path) -> ProcessorFile:
    """The file that ``AutoVideoProcessor`` would take; without any, class defaults are left.

    Raises:
        ModelError: it cannot be read, or belongs to another class.
    """
    nested, own, images = (directory / name for name in PROCESSOR_FILES)
    if nested.exists() and (values := read_json(nested).get(NESTED)) is not None:
        if not isinstance(values, dict):
            raise ModelError(
                f"{nested}: {NESTED} = {reprlib.repr(values)} is not possible: expected an object "
                f"of settings; {MEND}"
            )
        return _of_known_class(ProcessorFile(nested, values))
    for path in (own, images):
        if path.exists():
            return _of_known_class(ProcessorFile(path, read_json(path)))
    return ProcessorFile(own, {})


def _of_known_class(file: ProcessorFile) -> ProcessorFile:
    """Raise ModelError when transformers would make another processor of this file.

    Without a class for videos it takes the one named like the class for images, if there is one.
    None is named like the fast ones; the model's own is taken then.
    """
    advice = f"give the checkpoint the {PROCESSOR_FILES[1]} of its model"
    key = "video_processor_type"
    if file.get(key) is not None:
        file.require(file.get(key) == PROCESSOR_CLASS, key, repr(PROCESSOR_CLASS), advice)
        return file
    key = "image_processor_type"
    inferred = str(file.get(key)).replace("ImageProcessor", "VideoProcessor")
    is_own = file.get(key) is None or inferred == PROCESSOR_CLASS or inferred.endswith("Fast")
    file.require(is_own, key, f"a video_processor_type {PROCESSOR_CLASS!r} beside it", advice)
    return file
