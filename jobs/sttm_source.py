"""What an extraction of STTM holds, and how its frames were sampled."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus_walk import walk_files
from pipeline.sttm_prompt import PromptRule
from schemas.config import SamplingConfig
from schemas.errors import ConfigError, CorpusError
from schemas.video import VideoRef

_FOLDER_NAME = re.compile(r"F-(\d{1,5})_fps-(\d{1,4}(?:\.\d{1,6})?)")


@dataclass(frozen=True, slots=True)
class SttmSource:
    """Features on disk, and what they do not say about themselves.

    ``encoder_name`` is the user's name for the checkpoint that made the features.
    """

    folder: Path
    encoder_name: str
    rule: PromptRule
    sampling: SamplingConfig

    def find(self) -> list[VideoRef]:
        """The features of every video by id: the path below ``features/`` without ``.pt``.

        Raises:
            CorpusError: no such folder, one that cannot be listed, or no features in it.
        """
        features = self.folder.absolute() / "features"
        if not features.is_dir():
            raise CorpusError(
                f"{self.folder} holds no folder features; give the folder that STTM's extraction "
                "names F-<frames>_fps-<fps>, with features and metadata in it"
            )
        refs = [
            _feature_ref("/".join(names)[: -len(".pt")], entry)
            for names, entry in walk_files(features)
            if names[-1].endswith(".pt")
        ]
        if not refs:
            raise CorpusError(f"{features} holds no .pt files; expected one for each video")
        return sorted(refs, key=lambda ref: ref.video_id)

    def metadata_path(self, ref: VideoRef) -> Path:
        """Where the pickle of a video lies."""
        folder = self.folder.absolute()
        return (folder / "metadata" / Path(ref.path).relative_to(folder / "features")).with_suffix(
            ".pkl"
        )


def _feature_ref(video_id: str, entry: "os.DirEntry[str]") -> VideoRef:
    printable = video_id.encode("utf-8", "backslashreplace").decode("utf-8")
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        return VideoRef(printable, entry.path, -1, -1)
    return VideoRef(printable, entry.path, status.st_size, status.st_mtime_ns)


def resolve_sampling(folder: Path, fps: float | None, max_frames: int | None) -> SamplingConfig:
    """The sampling of an extraction: as said, or else as its folder is named.

    Raises:
        ConfigError: neither says it.
    """
    named = _FOLDER_NAME.fullmatch(folder.absolute().name)
    if named is None and (fps is None or max_frames is None):
        raise ConfigError(
            f"the name of {folder} does not say how frames were sampled, as F-256_fps-2 does; "
            "say --fps and --max-frames of the extraction"
        )
    if named is not None:
        max_frames = int(named[1]) if max_frames is None else max_frames
        fps = float(named[2]) if fps is None else fps
    assert fps is not None
    assert max_frames is not None
    return SamplingConfig(fps=fps, min_frames=1, max_frames=max_frames)
