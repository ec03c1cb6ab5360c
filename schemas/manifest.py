"""What a cache was built with; two builds may share a cache only when all of it is equal."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, get_args, get_origin, get_type_hints

from schemas.config import SamplingConfig, check_encoding
from schemas.errors import CacheMismatchError, ConfigError, FormatVersionError, IndexCorruptError
from schemas.fusion import FusionConfig
from schemas.grid import PatchGeometry
from schemas.index import FORMAT_VERSION

RESCALE_FACTOR = 1 / 255
"""What pixels are multiplied with before they are normalised, by default."""

IMPORTED = "sttm import"
"""What stands for the decoder, in manifests and rows, where another project made the features."""


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """Which vision encoder made the tokens, told apart by its weights and not by its path.

    ``weights_digest`` covers the vision tower only: names, types, shapes and bytes of its tensors
    and its configuration. ``tokenizer_digest`` covers the ids of timestamps and markers.
    ``dtype`` is the storage type of features, by its safetensors name.
    """

    model_type: str
    weights_digest: str
    tokenizer_digest: str
    dtype: str
    hidden_size: int
    num_deepstack: int
    patches: PatchGeometry


@dataclass(frozen=True, slots=True)
class ResolvedPreprocess:
    """The processor's settings as used: the checkpoint's, with the build's overrides applied."""

    min_pixels: int
    max_pixels: int
    cap_pixels_per_frame: bool
    max_video_tokens: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float = RESCALE_FACTOR

    def identity(self) -> dict[str, Any]:
        """The settings a cache is told apart by.

        ``rescale_factor`` is younger than format 1 and is left out where it is the usual one, so
        that older caches keep their fingerprint.
        """
        values = dataclasses.asdict(self)
        if self.rescale_factor == RESCALE_FACTOR:
            del values["rescale_factor"]
        return values


@dataclass(frozen=True, slots=True)
class DecoderIdentity:
    """The decoder policy and the versions it may use; another decoder may give other pixels."""

    decoder: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """How feature rows are stored, one of ``ENCODINGS``: "fp8" gives other features."""

    encoding: str = "none"

    def __post_init__(self) -> None:
        check_encoding(self.encoding)


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json``. ``about`` is information for people and never compared."""

    encoder: EncoderIdentity
    sampling: SamplingConfig
    preprocess: ResolvedPreprocess
    decode: DecoderIdentity
    fusion: FusionConfig
    store: StoreIdentity = StoreIdentity()
    format_version: int = FORMAT_VERSION
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", self.sampling.settled())
        object.__setattr__(self, "fusion", self.fusion.settled())

    def identity(self) -> dict[str, Any]:
        """All compared settings as plain JSON values."""
        values = dataclasses.asdict(self)
        del values["about"]
        values["preprocess"] = self.preprocess.identity()
        values["fusion"] = self.fusion.identity()
        return dict(json.loads(json.dumps(values)))

    @property
    def is_imported(self) -> bool:
        """Whether another project made the features, so that nobody here saw the weights."""
        return self.decode.decoder == IMPORTED

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON (sorted keys, no spaces) of ``identity``."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        body = {**self.identity(), "about": dict(self.about), "fingerprint": self.fingerprint}
        return json.dumps(body, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Self:
        """Parse and check a manifest.

        Raises:
            FormatVersionError: a version this code does not know.
            IndexCorruptError: not a manifest, or edited since it was written.
        """
        try:
            body = json.loads(text)
            version = body["format_version"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise IndexCorruptError(f"{source} is not a tokenreel manifest: {error!r}") from error
        if version != FORMAT_VERSION:
            raise FormatVersionError(
                f"{source} has format version {version!r}; this tokenreel reads {FORMAT_VERSION}"
            )
        try:
            preprocess = dict(body["preprocess"])
            for name in ("image_mean", "image_std"):
                preprocess[name] = tuple(preprocess[name])
            patches = PatchGeometry(**body["encoder"]["patches"])
            manifest = cls(
                encoder=EncoderIdentity(**{**body["encoder"], "patches": patches}),
                sampling=SamplingConfig(**body["sampling"]),
                preprocess=ResolvedPreprocess(**preprocess),
                decode=DecoderIdentity(**body["decode"]),
                fusion=FusionConfig(**body["fusion"]),
                store=StoreIdentity(**body["store"]),
                about=body["about"],
            )
            recorded = body["fingerprint"]
            _require_types(manifest, "manifest")
            _require_known(body, {*manifest.identity(), "about", "fingerprint"})
        except (TypeError, KeyError, ValueError) as error:
            raise IndexCorruptError(f"{source} cannot be read: {error!r}") from error
        if manifest.fingerprint != recorded:
            raise IndexCorruptError(
                f"{source} was changed after it was written: its fingerprint is {recorded!r}, "
                f"its contents give {manifest.fingerprint!r}"
            )
        return manifest

    def checkpoint(self, model: str | None, *, where: str) -> tuple[str, str | None]:
        """The checkpoint to use with this cache, and its revision on the hub.

        Args:
            model: the one asked for; None takes the one that made the cache.
            where: the cache, for the message.

        Raises:
            ConfigError: neither says.
        """
        name = model or self.about.get("model")
        if not name:
            raise ConfigError(f"{where} does not say which model made it; give --model")
        return name, self.about.get("revision") or None if name == self.about.get("model") else None

    def require_same(self, other: "Manifest", *, where: str) -> None:
        """Raise CacheMismatchError naming each field in which ``other`` differs."""
        mine, theirs = (
            {**each.identity(), "preprocess": dataclasses.asdict(each.preprocess)}
            for each in (self, other)
        )
        differing = list(_differences(mine, theirs))
        if differing:
            lines = "; ".join(
                f"{name}: cache has {left!r}, this build {right!r}"
                for name, left, right in differing
            )
            raise CacheMismatchError(
                f"{where} was built with another configuration ({lines}). "
                "Build into another folder, or change the settings back."
            )


def _require_known(body: Mapping[str, Any], names: Collection[str]) -> None:
    unknown = sorted(set(body) - set(names))
    if unknown:
        raise TypeError(f"fields {unknown} are unknown")


def _require_types(record: Any, where: str) -> None:
    """Raise TypeError unless each field of a dataclass, at any depth, is of its declared type."""
    for name, declared in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if dataclasses.is_dataclass(declared):
            _require_types(value, f"{where}.{name}")
        elif not _is_of(value, declared):
            raise TypeError(f"{where}.{name} is {value!r}, expected {declared}")


def _is_of(value: Any, declared: Any) -> bool:
    """Whether a JSON value is of a declared type; numbers are finite and fit 64 bits."""
    origin, inner = get_origin(declared), get_args(declared)
    if origin is tuple:
        return len(value) == len(inner) and all(map(_is_of, value, inner))
    if origin is Mapping:
        return isinstance(value, dict) and all(
            _is_of(text, str) for item in value.items() for text in item
        )
    if inner:
        return any(_is_of(value, each) for each in inner)
    if type(value) is int and declared in (int, float):
        return -(2**63) <= value < 2**63
    return type(value) is declared and (declared is not float or math.isfinite(value))


def _differences(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*mine, *theirs}):
        left, right = mine.get(name), theirs.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differences(left, right, f"{prefix}{name}.")
        elif json.dumps(left) != json.dumps(right):  # 1 token and 1.0 of all tokens differ
            yield f"{prefix}{name}", left, right
