"""Preprocessed features of STTM (arXiv 2507.07990): a tensor and a pickle for each video.

Neither file is trusted: tensors are loaded as weights only, pickles as plain values only.
Dimension key: T token frames, H x W tokens in each, C channels.
"""

import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.dtypes import STORAGE_DTYPES
from pipeline.plain_pickle import PickledTensor, read_plain_pickle
from pipeline.sttm_prompt import PromptRule
from schemas.errors import DecodeError, PreprocessError
from schemas.grid import PatchGeometry, TokenGrid


def read_features(path: Path) -> Tensor:
    """The visual tokens ``(T, H, W, C)`` of one video, mapped into memory and not yet read.

    Raises:
        DecodeError: no archive of ``torch.save``, or one that holds anything but tensors.
        PreprocessError: not one tensor of this shape and of a type that can be stored.
    """
    _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged archive can raise nearly anything
        reason = _objection(path, error)
        raise DecodeError("unreadable", f"{path} was not loaded: {reason}") from error
    if not isinstance(loaded, Tensor) or loaded.layout != torch.strided:
        raise PreprocessError(f"{path} holds {type(loaded).__name__}, expected one dense tensor")
    if loaded.ndim == 3:
        raise PreprocessError(
            f"{path} has shape {tuple(loaded.shape)}: features of a vision tower before the "
            "projector, as STTM's LLaVA extraction writes them, and no visual tokens. Project and "
            "pool them with the model, and save (T, H, W, C) in their place."
        )
    if loaded.ndim != 4 or 0 in loaded.shape:
        raise PreprocessError(f"{path} has shape {tuple(loaded.shape)}, expected (T, H, W, C)")
    if loaded.dtype not in STORAGE_DTYPES:
        known = ", ".join(map(str, STORAGE_DTYPES))
        raise PreprocessError(f"{path} is {loaded.dtype}, expected one of {known}")
    if loaded.numel() * loaded.element_size() > path.stat().st_size:
        raise PreprocessError(f"{path} is shorter than its shape {tuple(loaded.shape)} says")
    return loaded.detach()


def require_finite(features: Tensor, path: Path) -> None:
    """Raise PreprocessError naming the first token frame that holds NaN or infinity."""
    for number, frame in enumerate(features):
        if not frame.isfinite().all():
            raise PreprocessError(
                f"{path} holds NaN or infinity in token frame {number} of {len(features)}; "
                "extract the features of this video again"
            )


def _check_archive(path: Path) -> None:
    """Refuse what is no plain zip file before torch reads it."""
    if not path.is_file():
        raise DecodeError("missing", f"{path} is no file any more; import again without it")
    try:
        with zipfile.ZipFile(path) as archive:
            is_stored = all(entry.compress_type == 0 for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DecodeError(
            "unreadable",
            f"{path} is no archive of torch.save ({error}); it is cut short or something else. "
            "Extract the features of this video again.",
        ) from error
    if not is_stored:
        raise DecodeError("unreadable", f"{path} is compressed; torch.save does not compress")


def _objection(path: Path, error: Exception) -> str:
    """Why torch refused a file; its own text advises to load the file without checks."""
    if isinstance(error, pickle.UnpicklingError):
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # it reads the same hostile bytes
            names = []
        if names:
            return f"its pickle names {', '.join(names[:5])}, and nothing but tensors is loaded"
        return "its pickle holds more than tensors"
    return (str(error).splitlines() or [repr(error)])[0]


@dataclass(frozen=True, slots=True)
class SttmMetadata:
    """What the pickle of a video tells; LLaVA's tells no grid, and of frames their number."""

    duration_seconds: float
    num_frames: int
    grid: TokenGrid | None


def read_metadata(path: Path, rule: PromptRule, *, video_id: str) -> SttmMetadata:
    """What the extraction wrote down about one video.

    Raises:
        DecodeError: no such file, or a pickle of anything but plain values and tensors.
        PreprocessError: it belongs to another video or another model, or contradicts itself.
    """
    if not path.is_file():
        raise DecodeError(
            "missing",
            f"{path} does not exist; the extraction writes it after the features. Extract this "
            "video again, then import with --retry-failed.",
        )
    values = read_plain_pickle(path)
    try:
        if values["vid"] != video_id:
            raise PreprocessError(
                f"{path} is about video {str(values['vid'])[:200]!r}, expected {video_id!r}: files "
                "were renamed or mixed up; extract this video again"
            )
        if rule.model_type == "qwen2_vl":
            grid = _merged_grid(values["video_grid_thw"], rule.patches)
            num_frames = grid.frames * rule.patches.temporal_patch_size
            seconds = num_frames / float(values["video_sample_fps"])
        else:
            grid, num_frames = None, int(values["num_frames"])
            seconds = float(values["video_time"])
        if not (0 <= seconds < math.inf and 0 < num_frames < 2**31):
            raise ValueError(f"{num_frames} frames in {seconds} seconds")
    except PreprocessError:
        raise
    except Exception as error:  # a value of any other type, or missing
        raise PreprocessError(
            f"{path} is no metadata of a {rule.model_type} extraction: {error!r}. "
            "Say the model type that made these files, or extract this video again."
        ) from error
    return SttmMetadata(seconds, num_frames, grid)


def check_grid(features: Tensor, metadata: SttmMetadata, path: Path) -> TokenGrid:
    """The grid of ``(T, H, W, C)`` features.

    Raises:
        PreprocessError: the metadata speak of another grid or number of frames.
    """
    grid = TokenGrid(*features.shape[:3])
    told = metadata.grid or TokenGrid(metadata.num_frames, grid.height, grid.width)
    if grid != told:
        raise PreprocessError(
            f"{path} holds the grid {grid}, its metadata say {told} (frames x height x width, "
            "after the merge): the two files belong together; extract this video again"
        )
    return grid


def _merged_grid(value: PickledTensor, patches: PatchGeometry) -> TokenGrid:
    frames, height, width = value.integers()
    side = patches.spatial_merge_size
    if height % side or width % side:
        raise ValueError(f"video_grid_thw = {(frames, height, width)} is not in steps of {side}")
    return TokenGrid(frames, height // side, width // side)
