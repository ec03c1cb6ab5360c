"""Settings of one build, as frozen dataclasses that check themselves.

Precedence: command-line flag, then the TOML file (``schemas.config_file``), then what the
checkpoint says of sampling and preprocessing (``pipeline.processor``), then the defaults here.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from schemas.checks import make_floats, require
from schemas.fusion import FusionConfig
from schemas.tokens import ENCODINGS

DECODERS = ("auto", "decord", "pyav")
SIZE_CHANGES = ("scale", "refuse")
DTYPES = ("auto", "float32", "bfloat16", "float16")
RUNNERS = ("local", "ray")
MAX_FPS = 1000
MAX_SAMPLED_FRAMES = 65536


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Which frames are sampled: the rule of ``Qwen3VLVideoProcessor.sample_frames``.

    ``num_frames`` samples exactly that many frames and overrides ``fps``. What is None is not said
    here: ``over`` takes it from elsewhere, ``settled`` from the processor class.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        make_floats(self, "fps")
        fps, low = self.fps, self.min_frames
        require(
            fps is None or 0 < fps <= MAX_FPS, "sampling.fps", fps, f"a number in (0, {MAX_FPS}]"
        )
        require(low is None or low >= 1, "sampling.min_frames", low, "at least 1")
        for name in ("num_frames", "max_frames"):
            value = getattr(self, name)
            fits = value is None or 2 <= value <= MAX_SAMPLED_FRAMES
            expected = f"2 (one token frame) to {MAX_SAMPLED_FRAMES}"
            require(fits, f"sampling.{name}", value, expected)

    def over(self, other: "SamplingConfig") -> "SamplingConfig":
        """These settings, and those of ``other`` where nothing is said here.

        A rate said here sets aside a number of frames said there.
        """
        num_frames = self.num_frames
        if num_frames is None and self.fps is None:
            num_frames = other.num_frames
        return SamplingConfig(
            fps=other.fps if self.fps is None else self.fps,
            num_frames=num_frames,
            min_frames=other.min_frames if self.min_frames is None else self.min_frames,
            max_frames=other.max_frames if self.max_frames is None else self.max_frames,
        )

    def settled(self) -> "SamplingConfig":
        """The same with the values of the processor class where nothing is said.

        Beside ``num_frames`` the others count for nothing, so they are those of the class too.
        """
        if self.num_frames is not None:
            return dataclasses.replace(PROCESSOR_SAMPLING, num_frames=self.num_frames)
        return self.over(PROCESSOR_SAMPLING)


PROCESSOR_SAMPLING = SamplingConfig(fps=2.0, min_frames=4, max_frames=768)
"""How ``Qwen3VLVideoProcessor`` samples when neither a build nor the checkpoint says otherwise."""


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """What overrides the checkpoint's ``video_preprocessor_config.json``.

    ``min_pixels`` and ``max_pixels`` are budgets over ALL sampled frames of a video
    (``size.shortest_edge`` and ``size.longest_edge`` of the processor); None keeps what the
    checkpoint says.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    cap_pixels_per_frame: bool | None = None

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"preprocess.{name}", value, "at least 1")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How videos are decoded, and when to give up.

    A decode may take ``deadline_seconds + deadline_per_second * duration_seconds``.
    ``max_frame_pixels`` limits width x height before anything is decoded. With ``size_changes``
    "scale", frames of another size than the first one are scaled to it; "refuse" fails the video.
    ``children`` processes decode at once; none begins another video while ``read_ahead_bytes`` of
    resized frames wait for the encoder.
    """

    decoder: str = "auto"
    max_frame_pixels: int = 8192 * 4352
    size_changes: str = "scale"
    deadline_seconds: float = 60.0
    deadline_per_second: float = 2.0
    threads: int = 1
    children: int = 1
    read_ahead_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        make_floats(self, "deadline_seconds", "deadline_per_second")
        require(self.decoder in DECODERS, "decode.decoder", self.decoder, f"one of {DECODERS}")
        require(
            self.max_frame_pixels >= 1,
            "decode.max_frame_pixels",
            self.max_frame_pixels,
            "at least 1",
        )
        changes = self.size_changes
        require(changes in SIZE_CHANGES, "decode.size_changes", changes, f"one of {SIZE_CHANGES}")
        base, more = self.deadline_seconds, self.deadline_per_second
        require(0 < base <= 1e7, "decode.deadline_seconds", base, "a number in (0, 1e7]")
        require(0 <= more <= 1e4, "decode.deadline_per_second", more, "a number in [0, 1e4]")
        require(1 <= self.threads <= 64, "decode.threads", self.threads, "1 to 64")
        require(1 <= self.children <= 64, "decode.children", self.children, "1 to 64")
        ahead = self.read_ahead_bytes
        require(ahead >= 1, "decode.read_ahead_bytes", ahead, "at least 1")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Which vision encoder runs, and where.

    ``model`` is a local directory or a hub id. ``device`` "auto" takes CUDA when there is any;
    ``dtype`` "auto" takes the checkpoint's. ``max_patches_per_call`` bounds the memory of one
    encoder call: longer videos are encoded in chunks of whole token frames, short ones together.
    """

    model: str = ""
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_patches_per_call: int = 32768

    def __post_init__(self) -> None:
        require(self.dtype in DTYPES, "encoder.dtype", self.dtype, f"one of {DTYPES}")
        require(
            self.max_patches_per_call >= 1,
            "encoder.max_patches_per_call",
            self.max_patches_per_call,
            "at least 1",
        )


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How the cache is written.

    What is encoded is committed once it holds ``shard_bytes``, at the latest ``commit_seconds``
    after its first video was done, and when nothing else is left to do. ``encoding`` is how
    feature rows are stored: "none" as they are, "zstd" compressed and exact, "fp8" rounded to one
    byte per value.
    """

    shard_bytes: int = 256 * 2**20
    commit_seconds: float = 120.0
    encoding: str = "none"

    def __post_init__(self) -> None:
        make_floats(self, "commit_seconds")
        check_encoding(self.encoding)
        require(self.shard_bytes >= 1, "store.shard_bytes", self.shard_bytes, "at least 1")
        seconds = self.commit_seconds
        require(0 < seconds <= 1e7, "store.commit_seconds", seconds, "a number in (0, 1e7]")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Where a build runs and when it gives up.

    A Ray worker is given at most ``videos_at_a_time``. ``gpus_per_worker`` None is one where the
    Ray cluster has any, unless ``encoder.device`` is the CPU. ``recycle_videos``: a Ray
    worker is replaced after so many videos, for encoders that leak memory; None keeps it (decode
    children are always replaced after 500). ``max_failures``: an int is a count, a float in
    (0, 1) a fraction of the videos tried so far that counts after the first 100; None never
    stops.
    """

    runner: str = "local"
    address: str | None = None
    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    videos_at_a_time: int = 16
    recycle_videos: int | None = None
    max_failures: float | int | None = None

    def __post_init__(self) -> None:
        make_floats(self, "cpus_per_worker", "gpus_per_worker")
        require(self.runner in RUNNERS, "run.runner", self.runner, f"one of {RUNNERS}")
        require(1 <= self.workers <= 10_000, "run.workers", self.workers, "1 to 10000")
        cpus = self.cpus_per_worker
        require(0 <= cpus <= 1e4, "run.cpus_per_worker", cpus, "a number in [0, 1e4]")
        gpus = self.gpus_per_worker
        require(gpus is None or 0 <= gpus <= 1e4, "run.gpus_per_worker", gpus, "in [0, 1e4]")
        given = self.videos_at_a_time
        require(given >= 1, "run.videos_at_a_time", given, "at least 1")
        for name, each in (("cpus_per_worker", cpus), ("gpus_per_worker", gpus)):
            is_fine = each is None or each == round(each, 4)
            require(is_fine, f"run.{name}", each, "at most 4 decimals: Ray counts no finer")
        is_whole = gpus is None or gpus <= 1 or gpus.is_integer()
        require(is_whole, "run.gpus_per_worker", gpus, "a fraction of one, or whole GPUs")
        recycle = self.recycle_videos
        require(recycle is None or recycle >= 1, "run.recycle_videos", recycle, "at least 1")
        if self.runner == "local":
            require(self.workers == 1, "run.workers", self.workers, "1, or runner 'ray'")
            require(self.address is None, "run.address", self.address, "runner 'ray' with it")
        if isinstance(self.max_failures, float):
            require(
                0 < self.max_failures < 1,
                "run.max_failures",
                self.max_failures,
                "a whole number, or a fraction between 0 and 1",
            )
        elif self.max_failures is not None:
            require(self.max_failures >= 0, "run.max_failures", self.max_failures, "at least 0")


def check_encoding(encoding: str) -> None:
    """Raise ConfigError unless ``encoding`` is one of ``ENCODINGS``."""
    require(encoding in ENCODINGS, "store.encoding", encoding, f"one of {ENCODINGS}")


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """Everything a build needs to know besides the corpus and the cache folder.

    ``origins`` says for people where settings come from, by names such as "sampling.fps": "flag"
    or "toml", and once they are known "checkpoint" or "default".
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    run: RunConfig = field(default_factory=RunConfig)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def override(self, section: str, **values: Any) -> Self:
        """A copy with the values that are not None replaced in one section.

        Sampling by a rate sets a number of frames aside, as in ``SamplingConfig.over``.
        """
        given = {key: value for key, value in values.items() if value is not None}
        if section == "sampling":
            return dataclasses.replace(self, sampling=SamplingConfig(**given).over(self.sampling))
        return dataclasses.replace(
            self, **{section: dataclasses.replace(getattr(self, section), **given)}
        )
