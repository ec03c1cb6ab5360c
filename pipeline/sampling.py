"""Which frames of a video are looked at: the rule of transformers' ``Qwen3VLVideoProcessor``."""

import numpy as np
import numpy.typing as npt

from schemas.config import SamplingConfig


def sample_frame_indices(
    num_frames: int, fps: float, config: SamplingConfig
) -> npt.NDArray[np.int64]:
    """Indices of the sampled frames, ascending, spread evenly from the first to the last frame.

    Equal to ``Qwen3VLVideoProcessor.sample_frames`` (video_processing_qwen3_vl.py), rounding
    included: indices are ``round(linspace(0, num_frames - 1, n))``, half to even.

    Args:
        num_frames: frames the video shows, at least 1.
        fps: frames per second of the source.
        config: sampling rate and limits; those of the processor class where it does not say.

    Returns:
        ``(n,)`` int64.
    """
    settled = config.settled()
    if settled.num_frames is not None:
        count = settled.num_frames
    else:
        assert settled.fps is not None
        assert settled.min_frames is not None
        assert settled.max_frames is not None
        count = int(num_frames / fps * settled.fps)
        count = min(max(count, settled.min_frames), settled.max_frames, num_frames)
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)
