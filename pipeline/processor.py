"""How a checkpoint wants its videos sampled and prepared: the defaults of every build.

Each setting is read as ``Qwen3VLVideoProcessor`` of transformers reads it. What this pipeline does
not do is refused by name, and what a build sets itself is not looked at (docs/configuration.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.processor_file import MEND, ProcessorFile, find_processor_file, is_number
from schemas.config import (
    MAX_FPS,
    MAX_SAMPLED_FRAMES,
    PROCESSOR_SAMPLING,
    PreprocessConfig,
    SamplingConfig,
)
from schemas.errors import ConfigError
from schemas.grid import PatchGeometry
from schemas.manifest import ResolvedPreprocess

_FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "do_resize": ((True,), "true, frames are always resized"),
    "resample": ((3, "bicubic"), "3 (bicubic), frames are resized in no other way"),
    "do_normalize": ((True,), "true, pixels are always normalised"),
    "do_center_crop": ((False, None), "false, frames are never cropped"),
    "device": (("cpu", None), "null or 'cpu', frames are always resized on the CPU"),
}
"""Settings this pipeline implements in one way only: their possible values, in words."""


@dataclass(frozen=True, slots=True)
class ProcessorSettings:
    """Sampling and preprocessing as used, nothing left open.

    ``origins`` says for people where each value comes from: "checkpoint", "default" of the
    processor class, or "caller" for what was given; by names such as "sampling.fps".
    """

    sampling: SamplingConfig
    preprocess: ResolvedPreprocess
    origins: Mapping[str, str]


def resolve_settings(
    directory: Path,
    *,
    sampling: SamplingConfig | None = None,
    preprocess: PreprocessConfig | None = None,
    patches: PatchGeometry | None = None,
) -> ProcessorSettings:
    """The settings of a checkpoint's video processor, with what is given in their place.

    Args:
        directory: of the checkpoint.
        sampling: overrides; a rate sets aside the checkpoint's number of frames.
        preprocess: overrides.
        patches: of the vision encoder, for comparison.

    Raises:
        ModelError: a setting that makes no sense, that this pipeline does not implement, or that
            contradicts the encoder.
        ConfigError: the pixel budgets contradict each other, or a limit has no effect.
    """
    sampling = sampling or SamplingConfig()
    preprocess = preprocess or PreprocessConfig()
    file = find_processor_file(directory)
    for key, (values, expected) in _FIXED.items():
        value = file.get(key)
        file.require(any(_equal(value, each) for each in values), key, expected)
    if patches is not None:
        _require_geometry(file, patches)
    settled = sampling.over(_own_sampling(file, sampling)).settled()
    _refuse_idle_limits(sampling, settled, file)
    origins = dict(_origins(file, sampling, preprocess, settled))
    return ProcessorSettings(settled, _resolve_preprocess(file, preprocess), origins)


def _equal(value: object, other: object) -> bool:
    """Equality of JSON values: 1 is not true, 3.0 not 3."""
    return type(value) is type(other) and value == other


def _require_geometry(file: ProcessorFile, patches: PatchGeometry) -> None:
    sides = {
        "patch_size": patches.patch_size,
        "temporal_patch_size": patches.temporal_patch_size,
        "merge_size": patches.spatial_merge_size,
    }
    for key, side in sides.items():
        expected = f"{side} as the vision encoder has it, so the checkpoint contradicts itself"
        file.require(_equal(file.get(key), side), key, expected)


def _own_sampling(file: ProcessorFile, given: SamplingConfig) -> SamplingConfig:
    """The checkpoint's sampling, as far as the build does not overrule it."""
    fps = num_frames = min_frames = max_frames = None
    if given.fps is None and given.num_frames is None:
        fps, num_frames = _own_rate(file)
    if given.min_frames is None:
        min_frames = file.whole("min_frames", 1, None, f"{MEND}, or set sampling.min_frames")
    if given.max_frames is None:
        advice = f"{MEND}, or say --max-frames"
        max_frames = file.whole("max_frames", 2, MAX_SAMPLED_FRAMES, advice)
    return SamplingConfig(fps, num_frames, min_frames, max_frames)


def _refuse_idle_limits(
    given: SamplingConfig, settled: SamplingConfig, file: ProcessorFile
) -> None:
    """Least and most frames limit a rate; a number of frames passes over them."""
    if settled.num_frames is None:
        return
    is_own = given.num_frames is None
    source = f" of {file.path}" if is_own else ""
    for name in ("min_frames", "max_frames"):
        value = getattr(given, name)
        if value is not None and (is_own or value != getattr(settled, name)):
            raise ConfigError(
                f"sampling.{name} = {value} has no effect beside num_frames = "
                f"{settled.num_frames}{source}, which samples exactly so many frames; say --fps, "
                f"which sets num_frames aside, or leave {name} out"
            )


def _own_rate(file: ProcessorFile) -> tuple[float | None, int | None]:
    """``fps``, or ``num_frames`` in its place; the processor refuses both.

    Its own rate does not count as one: every processor that was saved has it written out.
    """
    advice = f"{MEND}, or say --fps or --num-frames"
    expected = "true, as every frame is too many for a cache"
    file.require(file.get("do_sample_frames") is True, "do_sample_frames", expected, advice)
    fps = file.get("fps")
    if file.get("num_frames") is None:
        fits = is_number(fps, 0, MAX_FPS) and fps > 0
        file.require(fits, "fps", f"a number in (0, {MAX_FPS}]", advice)
        return float(fps), None
    num_frames = file.whole("num_frames", 2, MAX_SAMPLED_FRAMES, advice)
    is_alone = fps is None or fps == PROCESSOR_SAMPLING.fps
    file.require(is_alone, "fps", f"none beside num_frames = {num_frames}", advice)
    return None, num_frames


def _resolve_preprocess(file: ProcessorFile, given: PreprocessConfig) -> ResolvedPreprocess:
    min_pixels, max_pixels = _pixel_budgets(file, given)
    cap = given.cap_pixels_per_frame
    if cap is None:
        cap = file.get("cap_pixels_per_frame")
        advice = f"{MEND}, or set preprocess.cap_pixels_per_frame"
        fits = cap is None or isinstance(cap, bool)
        file.require(fits, "cap_pixels_per_frame", "true, false or null", advice)
    return ResolvedPreprocess(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        cap_pixels_per_frame=bool(cap),
        max_video_tokens=file.whole("max_video_tokens", 1),
        image_mean=_per_channel(file, "image_mean", low=-1e6),
        image_std=_per_channel(file, "image_std", low=1e-6),
        rescale_factor=_rescale_factor(file),
    )


def _pixel_budgets(file: ProcessorFile, given: PreprocessConfig) -> tuple[int, int]:
    """``size.shortest_edge`` and ``size.longest_edge``, which are budgets of pixels."""
    size = file.get("size")
    is_known = isinstance(size, dict) and set(size) <= {"shortest_edge", "longest_edge"}
    edges = size if is_known else {}
    expected = '{"shortest_edge": pixels, "longest_edge": pixels}, whole numbers from 1'
    advice = f"{MEND}, or set preprocess.min_pixels and preprocess.max_pixels"

    def budget(edge: str, override: int | None) -> int:
        if override is not None:
            return override
        pixels: Any = edges.get(edge)
        file.require(is_number(pixels, 1) and pixels == int(pixels), "size", expected, advice)
        return int(pixels)

    low = budget("shortest_edge", given.min_pixels)
    high = budget("longest_edge", given.max_pixels)
    for key, used in (("min_pixels", low), ("max_pixels", high)):
        is_used = file.get(key) in (None, used) or getattr(given, key) is not None
        elsewhere = f"it in size, as the processor passes over {key}"
        file.require(is_used, key, elsewhere, advice)
    if low > high:
        raise ConfigError(
            f"preprocess.min_pixels = {low} is above preprocess.max_pixels = {high}; expected a "
            f"smaller or equal number (what the build does not set is from {file.path})"
        )
    return low, high


def _per_channel(file: ProcessorFile, key: str, *, low: float) -> tuple[float, float, float]:
    """Three numbers; one, in a list or not, is for all three channels."""
    value = file.get(key)
    numbers = value if isinstance(value, list) else [value]
    fits = len(numbers) in (1, 3) and all(is_number(number, low, 1e6) for number in numbers)
    file.require(fits, key, f"one number or three, from {low:g} to 1e+06")
    red, green, blue = map(float, numbers if len(numbers) == 3 else numbers * 3)
    return red, green, blue


def _rescale_factor(file: ProcessorFile) -> float:
    """What pixels are multiplied with; without ``do_rescale`` they stay as they are."""
    does = file.get("do_rescale")
    file.require(does is None or isinstance(does, bool), "do_rescale", "true or false")
    if not does:
        return 1.0
    factor = file.get("rescale_factor")
    file.require(is_number(factor, 1e-6, 1e6), "rescale_factor", "a number from 1e-06 to 1e+06")
    return float(factor)


def _origins(
    file: ProcessorFile,
    sampling: SamplingConfig,
    preprocess: PreprocessConfig,
    settled: SamplingConfig,
) -> Iterator[tuple[str, str]]:
    """Where each setting that counts comes from."""
    by_rate = ("fps", "min_frames", "max_frames")
    for name in by_rate if settled.num_frames is None else ("num_frames",):
        origin = "checkpoint" if name in file.values else "default"
        yield f"sampling.{name}", "caller" if getattr(sampling, name) is not None else origin
    for name in (field.name for field in fields(ResolvedPreprocess)):
        keys = _FILE_KEYS.get(name, (name,))
        origin = "checkpoint" if any(key in file.values for key in keys) else "default"
        is_given = getattr(preprocess, name, None) is not None
        yield f"preprocess.{name}", "caller" if is_given else origin


_FILE_KEYS = {
    "min_pixels": ("size",),
    "max_pixels": ("size",),
    "rescale_factor": ("do_rescale", "rescale_factor"),
}
"""What a setting is called in the file, where it is called otherwise."""
