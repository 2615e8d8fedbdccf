"""Low-rank adapters (LoRA, arXiv 2106.09685): a projection W becomes W + alpha/rank * B A, and only A and B learn.

peft puts them into the very model that is trained, so Bagel stays one class, and every verb and log-probability goes
through them. B begins at 0: a fresh adapter changes nothing. There is no dropout, since a log-probability must repeat
what the sampler did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.errors import ConfigError
from triptych.files import naming_errors, replaced_folder
from triptych.model.bagel import Bagel
from triptych.model.tensor_files import write_tensors
from triptych.rl.config import LoraConfig

NAME = "default"  # peft's name of the only adapter


def inject(bagel: Bagel, lora: LoraConfig, seed: int) -> None:
    """Put fresh adapters into `bagel`, in float32 whatever the weights are; nothing else has a gradient from now on.

    Raises ConfigError where peft is missing, or the model has adapters already.
    """
    peft = _peft()
    if layers(bagel):
        raise ConfigError("this model has adapters already; expected a plain one: load it anew, or merge them first")
    choice = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets(lora))
    peft.inject_adapter_in_model(choice, bagel)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(bagel).values():
        first, second = layer.lora_A[NAME], layer.lora_B[NAME]
        for part in (first, second):
            part.to(torch.float32)
        bound = math.sqrt(1 / first.in_features)  # peft's: Kaiming's uniform with a = sqrt(5)
        with torch.no_grad():
            first.weight.copy_(torch.empty(first.weight.shape).uniform_(-bound, bound, generator=generator))
            second.weight.zero_()


def targets(lora: LoraConfig) -> str:
    """A pattern of the full names of the projections that get an adapter; none is in the vision tower."""
    names = "|".join(lora.projections)
    experts = {
        "und": rf"(self_attn|mlp)\.({names})",
        "gen": rf"(self_attn\.({names})_moe_gen|mlp_moe_gen\.({names}))",
    }
    chosen = [pattern for expert, pattern in experts.items() if lora.experts in (expert, "both")]
    return rf"language_model\.model\.layers\.\d+\.({'|'.join(chosen)})"


def layers(bagel: Bagel) -> dict[str, Any]:
    """The projections of a model that have an adapter, by name; none in a plain model."""
    if not hasattr(bagel, "peft_config"):
        return {}
    kind = _peft().tuners.lora.LoraLayer
    return {name: module for name, module in bagel.named_modules() if isinstance(module, kind)}


@contextmanager
def switched_off(bagel: Bagel) -> Iterator[None]:
    """The model as it was before its adapters, without a second copy of it."""
    adapters = list(layers(bagel).values())
    flags = [(parameter, parameter.requires_grad) for layer in adapters for parameter in _parameters(layer)]
    try:
        for layer in adapters:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in adapters:
            layer.enable_adapters(True)
        for parameter, flag in flags:  # peft makes all of them learn when it enables them
            parameter.requires_grad_(flag)


@torch.no_grad()
def merged(bagel: Bagel) -> dict[str, Tensor]:
    """The weights under their ordinary names with the adapters added in; the model stays as it is.

    A plain model's state is returned as it is. `weights.save(bagel, folder, state=merged(bagel))` publishes it.
    """
    state = bagel.state_dict()
    for name, layer in layers(bagel).items():
        inside = [key for key in state if key.startswith(f"{name}.")]
        held = {key.removeprefix(f"{name}."): state.pop(key) for key in inside}
        state[f"{name}.weight"] = _sum(layer)
        if "base_layer.bias" in held:
            state[f"{name}.bias"] = held["base_layer.bias"]
    return state


@torch.no_grad()
def merge(bagel: Bagel) -> None:
    """Add the adapters into the weights and take them out: a plain model again, under the ordinary names."""
    for name, layer in layers(bagel).items():
        base = layer.get_base_layer()
        base.weight.copy_(_sum(layer))
        bagel.set_submodule(name, base)
    if hasattr(bagel, "peft_config"):
        del bagel.peft_config


def save_adapters(bagel: Bagel, folder: Path) -> None:
    """Write the adapters alone in peft's layout, whole or not at all, in place of older ones in `folder`.

    `peft.PeftModel.from_pretrained(bagel, folder)` puts them on the model that training began with. Raises OutputError.
    """
    tensors = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": parameter.detach().contiguous().cpu()
        for name, parameter in bagel.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    configs: Any = bagel.peft_config
    with naming_errors(folder), replaced_folder(folder) as part:
        configs[NAME].save_pretrained(str(part))
        write_tensors(part / "adapter_model.safetensors", tensors)


def _sum(layer: Any) -> Tensor:
    """W + alpha/rank * B A, added in float32 and rounded once."""
    weight = layer.get_base_layer().weight
    return (weight.float() + layer.get_delta_weight(NAME).float()).to(weight.dtype)


def _parameters(layer: Any) -> list[nn.Parameter]:
    return [layer.lora_A[NAME].weight, layer.lora_B[NAME].weight]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "adapters need peft, which is not installed; install it with: pip install 'triptych[lora]', or train all "
            "weights with --lora.rank 0"
        ) from error
    return peft
