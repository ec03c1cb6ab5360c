"""The transformers model inside what people put round it: torch.compile, replicas, PEFT."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from schemas.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class AnsweringModel:
    """A model as it is run, and the transformers model that it is or holds.

    Attributes:
        runs: what is called and generates: the model, or the PEFT wrapper round it, so that every
            kind of adapter takes effect. What torch.compile, DataParallel and
            DistributedDataParallel add is left out, as transformers' own ``generate`` does.
        plain: what has the configuration, the weights and the device.
    """

    runs: Any
    plain: Any

    def generate(self, **inputs: Any) -> Any:
        """``generate`` of the wrapper where it has one, else of the model inside."""
        generator = self.runs if hasattr(self.runs, "generate") else self.plain
        return generator.generate(**inputs)


def find_model(given: Any) -> AnsweringModel:
    """The transformers model that takes cached tokens, wherever it is inside ``given``.

    Raises:
        ModelError: no such model is found, or an adapter that puts columns before the prompt.
    """
    if not isinstance(given, torch.nn.Module):
        raise ModelError(_no_model(given))
    runs = given
    while (inner := _without_replicas(runs)) is not None:
        runs = inner
    plain = runs
    while (inner := _one_level_in(plain)) is not None:
        _refuse_prompt_learning(plain)
        plain = inner
    require_encoder_outputs(plain)
    return AnsweringModel(runs, plain)


def require_encoder_outputs(model: Any) -> None:
    """Raise ModelError unless this generates and its forward declares ``mm_encoder_outputs``."""
    takes_them = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if not (takes_them and isinstance(model, PreTrainedModel) and model.can_generate()):
        raise ModelError(
            f"{type(model).__name__} takes no mm_encoder_outputs, so cached tokens cannot enter it "
            "and answers cannot be generated; give a ForConditionalGeneration model of "
            "transformers >= 5.18, as it is or inside torch.compile, DataParallel, "
            "DistributedDataParallel or PEFT"
        )


def adapter_state(model: Any) -> list[tuple[object, ...]]:
    """Which adapters take effect in each layer that has any, and how strongly.

    Layers are known by the attributes that PEFT's tuner layers have.
    """
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    return [
        (name, *(getattr(layer, each, None) for each in names))
        for name, layer in model.named_modules()
        if hasattr(layer, "active_adapters") and not isinstance(layer, PreTrainedModel)
    ]


def _without_replicas(model: Any) -> Any:
    """What torch.compile or a replica wrapper holds, None for anything else."""
    if "_orig_mod" in model._modules:
        return model._modules["_orig_mod"]
    is_replica = isinstance(model, DataParallel | DistributedDataParallel)
    return model.module if is_replica else None


def _one_level_in(model: Any) -> Any:
    """What any wrapper that is known here holds, None for anything else."""
    if isinstance(model, PreTrainedModel):
        return None
    inner = _without_replicas(model)
    if inner is None and hasattr(type(model), "get_base_model"):
        inner = model.get_base_model()
    if inner is None:
        inner = getattr(getattr(model, "base_model", None), "model", None)
    return inner if isinstance(inner, torch.nn.Module) else None


def _refuse_prompt_learning(model: Any) -> None:
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ModelError(
            f"the adapter {type(config).__name__} puts columns of its own before the prompt, and "
            "the positions of cached tokens leave no room for them; use an adapter inside the "
            "layers, such as LoRA"
        )


def _no_model(given: Any) -> str:
    expected = "expected a loaded transformers model, as in Session(model, tokenizer, video)"
    if isinstance(given, str):
        return (
            f"the model is the text {given!r}; {expected}: load it with "
            "AutoModelForImageTextToText.from_pretrained"
        )
    if isinstance(given, PreTrainedTokenizerBase | ProcessorMixin):
        return f"the model is the tokenizer {type(given).__name__}; {expected}"
    return f"the model is of type {type(given).__name__}; {expected}"
