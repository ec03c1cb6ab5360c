"""Muon for matrices and AdamW for the rest, on float32 weights; the forward runs in bfloat16."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MATRIX_RATE, OTHER_RATE = 3e-3, 2e-3
WARM, FLAT, LOWEST = 0.03, 0.35, 0.02
LARGEST_GRADIENT = 1.0


def rate_at(share: float) -> float:
    """Learning rate over its highest at a share of the steps: up, flat, then straight down."""
    if share < WARM:
        return max(share / WARM, LOWEST)
    return 1.0 if share < FLAT else 1 - (1 - LOWEST) * (share - FLAT) / (1 - FLAT)


class MixedPrecision:
    """Modules that run forward and backward on a bfloat16 copy, with optimizers of the originals.

    Args:
        modules: named; their float32 weights are what is trained and kept.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._masters = modules
        self.working = {name: copy.deepcopy(module).bfloat16() for name, module in modules.items()}
        named = [
            (f"{part}.{name}", weight)
            for part, module in modules.items()
            for name, weight in module.named_parameters()
        ]
        self._groups = {
            (is_vision, is_matrix): [
                weight
                for name, weight in named
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
        pairs = list(zip(self._weights(self._masters), self._weights(self.working), strict=True))
        for master, working in pairs:
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        with_gradient = [master for master, _ in pairs if master.grad is not None]
        if dist.is_initialized():
            _average([master.grad for master in with_gradient])
        nn.utils.clip_grad_norm_(with_gradient, LARGEST_GRADIENT)
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
            self._weights(self._masters), self._weights(self.working), strict=True
        ):
            working.copy_(master)

    def state(self) -> list[dict[str, Any]]:
        """Of the optimizers, for ``restore``."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def restore(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self.renew()

    @staticmethod
    def _weights(modules: dict[str, nn.Module]) -> Iterable[nn.Parameter]:
        for module in modules.values():
            yield from module.parameters()


def _average(gradients: list[Tensor]) -> None:
    """Put the mean over all processes into each."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _is_matrix(name: str, weight: nn.Parameter) -> bool:
    is_table = "embed" in name or "reader" in name
    return weight.ndim == 2 and not is_table
