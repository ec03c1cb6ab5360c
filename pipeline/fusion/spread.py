"""The order of frames that are all kept: what a loader takes of them is spread over the video."""

import torch
from torch import Tensor


def spread_frames(order: Tensor, num_frames: int, tokens_per_frame: int) -> Tensor:
    """Let a prefix of whole frames hold frames from everywhere: first, middle, quarters ...

    Frames are taken in the order of their numbers' reversed bits (van der Corput).

    Args:
        order: ``(K,)`` a storage order that begins with ``num_frames`` whole frames.
        num_frames: of these, at least 1.
        tokens_per_frame: N.

    Returns:
        ``(K,)`` the same places, whole frames rearranged.
    """
    num_bits = (num_frames - 1).bit_length()
    reversed_bits = sorted(range(num_frames), key=lambda frame: f"{frame:0{num_bits}b}"[::-1])
    num_tokens = num_frames * tokens_per_frame
    frames = order[:num_tokens].view(num_frames, tokens_per_frame)[reversed_bits]
    return torch.cat([frames.flatten(), order[num_tokens:]])
