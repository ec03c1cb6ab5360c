"""Whether a model in memory belongs to the checkpoint that made a cache.

What counts is what the checkpoint's files say, not the tensors in memory: the same checkpoint in
another floating type, with a quantised or tuned language model or with adapters has the same vision
weights on disk. The files are found by the name the model was loaded under.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from pipeline.dtypes import TORCH_DTYPES
from pipeline.encoders.checkpoint import find_checkpoint
from pipeline.encoders.qwen3_vl import VISION_TOWERS, digest_tower, load_tower
from pipeline.model_folder import read_json
from schemas.errors import ModelError
from schemas.manifest import EncoderIdentity, Manifest

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".json")

_NUM_COMPARED = 1024
"""Weights that are compared with the file to tell a loaded model from a fresh one."""

_MOST_APART = 0.1
"""Relative distance; tuning and other floating types move weights by far less."""


@dataclass(frozen=True, slots=True, eq=False)
class VisionFiles:
    """What the files of a checkpoint hold of its vision encoder.

    Attributes:
        directory: where they lie.
        digest: as ``EncoderIdentity.weights_digest``.
        first_weights: the first ones of the patch embedding, float32.
    """

    directory: Path
    digest: str
    first_weights: Tensor


_known: WeakKeyDictionary[Any, dict[tuple[object, ...], VisionFiles]] = WeakKeyDictionary()
"""What was read for a model, by where it was read and the type of the cache."""


def require_made_by(
    model: Any, manifest: Manifest, *, checkpoint: str | None = None
) -> Path | None:
    """Raise unless this model's checkpoint made the cache of ``manifest``.

    The vision weights are read once per model, and once per process from the same files. Of an
    imported cache nobody saw the weights: only the kind of the model is compared.

    Args:
        model: a transformers model.
        manifest: of the cache.
        checkpoint: local directory or hub id to believe instead of the name in the model.

    Returns:
        The folder of the checkpoint's files; None for an imported cache.

    Raises:
        ModelError: another checkpoint, or one that cannot be found; the message says which.
    """
    encoder = manifest.encoder
    _require_kind(model, encoder)
    if manifest.is_imported:
        return None
    kept = _known.setdefault(model, {})
    key = checkpoint, manifest.about.get("revision"), _name(model), encoder.dtype
    if key not in kept:
        kept[key] = _read_files_of(model, manifest, checkpoint)
    if kept[key].digest != encoder.weights_digest:
        name = checkpoint or _name(model)
        raise ModelError(_other_weights(name, encoder, manifest.about.get("model")))
    return kept[key].directory


def require_vision_files(directory: Path, encoder: EncoderIdentity) -> None:
    """Raise ModelError unless the files of a checkpoint hold the vision weights of a cache."""
    if read_vision_files(directory, encoder).digest != encoder.weights_digest:
        raise ModelError(_other_weights(str(directory), encoder))


def read_vision_files(directory: Path, encoder: EncoderIdentity) -> VisionFiles:
    """Read a checkpoint's vision weights in the type of a cache, once while its files stay.

    Raises:
        ModelError: another kind of model, or the files cannot be read.
    """
    require_model_type(directory, encoder)
    if encoder.model_type not in VISION_TOWERS:
        raise ModelError(
            f"{directory}: no checkpoint of type {encoder.model_type!r} can be shown to have made "
            "a cache; give the loaded model to tokenreel.Session, which compares its kind alone"
        )
    return _read(directory, encoder.model_type, encoder.dtype, _stamp(directory))


def require_model_type(directory: Path, encoder: EncoderIdentity) -> None:
    """Raise ModelError unless a checkpoint is of the kind that made a cache."""
    model_type = read_json(directory / "config.json").get("model_type")
    if model_type != encoder.model_type:
        raise ModelError(
            f"{directory}: config.json says model_type {model_type!r}, this cache was made by a "
            f"{encoder.model_type!r}; give the checkpoint the cache was built with"
        )


@lru_cache(maxsize=64)
def _read(directory: Path, model_type: str, dtype: str, stamp: object) -> VisionFiles:
    tower = load_tower(directory, model_type, torch.device("cpu"), TORCH_DTYPES[dtype])
    return VisionFiles(directory, digest_tower(tower), _first_weights(tower))


def _stamp(directory: Path) -> str:
    """Names, sizes and times of the files that hold weights."""
    digest = hashlib.sha256()
    try:
        for path in sorted(directory.iterdir()):
            if path.suffix in _WEIGHT_SUFFIXES:
                stat = path.stat()
                told = path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino
                digest.update(repr(told).encode())
    except OSError as error:
        raise ModelError(
            f"{error.filename or directory} cannot be read: {error.strerror}; expected a whole "
            "checkpoint, so correct its permissions or fetch it again"
        ) from error
    return digest.hexdigest()


def _read_files_of(model: Any, manifest: Manifest, checkpoint: str | None) -> VisionFiles:
    if checkpoint is not None:
        found = find_checkpoint(manifest, checkpoint, where="the cache")
        return read_vision_files(found.directory, manifest.encoder)
    directory = _origin(model)
    try:
        files = read_vision_files(directory, manifest.encoder)
    except ModelError as error:
        raise ModelError(f"{error}; or {_NAME_IT}") from error
    live = _first_weights(getattr(model.model, "visual", None))
    if live.shape == files.first_weights.shape:
        apart = (live - files.first_weights).norm() / files.first_weights.norm()
        if not apart < _MOST_APART:
            raise ModelError(
                f"the model has the name {_name(model)!r} and not the weights of "
                f"that checkpoint, as one that was built from a configuration; {_NAME_IT}"
            )
    return files


_NAME_IT = "name the checkpoint it is of: Session(..., checkpoint='folder or hub id')"


def _name(model: Any) -> str:
    """The folder or hub id a model was loaded under, "" where it does not say."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def _origin(model: Any) -> Path:
    """The folder a model was loaded from: local, or a snapshot in the hub's cache."""
    name = _name(model)
    if not name:
        raise ModelError(f"the model does not say where it was loaded from; {_NAME_IT}")
    directory = Path(name).expanduser()
    if (directory / "config.json").is_file():
        return directory.resolve()
    revision = getattr(model.config, "_commit_hash", None)
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # no name that the hub could have
        found = None
    if not isinstance(found, str):
        raise ModelError(f"the model was loaded from {name!r}, which is not there now; {_NAME_IT}")
    return Path(found).parent


def _first_weights(tower: Any) -> Tensor:
    """Some weights of the patch embedding, which neither quantisation nor adapters touch."""
    weight = getattr(getattr(getattr(tower, "patch_embed", None), "proj", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        return torch.empty(0)
    return weight.detach().flatten()[:_NUM_COMPARED].float().cpu()


def _require_kind(model: Any, encoder: EncoderIdentity) -> None:
    """Compare what the configuration in memory says; costs nothing."""
    config = model.config
    width = config.get_text_config().hidden_size
    layers = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None)
    compared = {
        "type": (config.model_type, encoder.model_type),
        "width": (width, encoder.hidden_size),
        "number of DeepStack layers": (len(layers or ()), encoder.num_deepstack),
    }
    for what, (found, expected) in compared.items():
        if found != expected:
            raise ModelError(
                f"the {what} of this model is {found}, of the one that made the cache {expected}; "
                "give the model of the checkpoint the cache was built with"
            )


def _other_weights(name: str, encoder: EncoderIdentity, made_by: str | None = None) -> str:
    maker = f" by {made_by!r}" if made_by else ""
    return (
        f"{name}: its vision weights are not those that made this cache{maker} "
        f"({encoder.model_type}, digest {encoder.weights_digest[:12]}...); give the checkpoint the "
        "cache was built with"
    )
