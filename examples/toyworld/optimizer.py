"""Muon for matrices and AdamW for the rest, on float32 weights; the forward runs in bfloat16."""

import copy
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

MATRIX_RATE, OTHER_RATE = 3e-3, 2e-3
LARGEST_GRADIENT = 1.0


M = TypeVar("M", bound=nn.Module)


class MixedPrecision(Generic[M]):
    """A module that runs forward and backward on a bfloat16 copy, with optimizers of the original.

    Args:
        module: its float32 weights are what is trained and kept.
    """

    def __init__(self, module: M) -> None:
        self.master = module
        self.working = copy.deepcopy(module)
        for weight in self.working.parameters():
            weight.data = weight.data.bfloat16()
        self._groups = {
            (is_vision, is_matrix): [
                weight
                for name, weight in module.named_parameters()
                if ("visual" in name) == is_vision and _is_matrix(name, weight) == is_matrix
            ]
            for is_vision in (False, True)
            for is_matrix in (False, True)
        }
        self._optimizers = [
            torch.optim.Muon(
                self._parameter_groups(is_matrix=True),
                weight_decay=0.02,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                self._parameter_groups(is_matrix=False), betas=(0.9, 0.98), weight_decay=0.0
            ),
        ]

    def _parameter_groups(self, *, is_matrix: bool) -> list[dict[str, Any]]:
        rate = MATRIX_RATE if is_matrix else OTHER_RATE
        return [
            {"params": self._groups[is_vision, is_matrix], "lr": rate, "is_vision": is_vision}
            for is_vision in (False, True)
        ]

    def step(self, *, share: float, vision_share: float) -> None:
        """Take one step with the gradients of the copies, and renew the copies.

        Where several processes train together, it is the mean of their gradients.

        Args:
            share: learning rate over its highest.
            vision_share: the vision tower's rate over the others'; 0 keeps it as it is.
        """
        masters = list(self.master.parameters())
        for master, working in zip(masters, self.working.parameters(), strict=True):
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        if dist.is_initialized():
            _average([master.grad for master in masters if master.grad is not None])
        nn.utils.clip_grad_norm_(masters, LARGEST_GRADIENT)
        for optimizer, rate in zip(self._optimizers, (MATRIX_RATE, OTHER_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share * (vision_share if group["is_vision"] else 1.0)
                if group["lr"] == 0:
                    for weight in group["params"]:
                        weight.grad = None
            optimizer.step()
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Copy the float32 weights to the bfloat16 ones."""
        for master, working in zip(
            self.master.parameters(), self.working.parameters(), strict=True
        ):
            working.copy_(master)

    def state(self) -> list[dict[str, Any]]:
        """Of the optimizers, for ``restore``."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def restore(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self.renew()


def _average(gradients: list[Tensor]) -> None:
    """Put the mean over all processes into each."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _is_matrix(name: str, weight: nn.Parameter) -> bool:
    is_table = "embed" in name or "reader" in name
    return weight.ndim == 2 and not is_table
