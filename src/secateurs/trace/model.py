"""What a model holds, by path, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as (args, kwargs): a tensor, a tuple of args, or a dict of kwargs."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def input_tensors(example_inputs: Any) -> list[torch.Tensor]:
    """The tensors among the inputs, in a fixed order."""
    leaves = pytree.tree_leaves(as_call(example_inputs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def modules_of(model: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """Every module by path, the model itself under its own; a shared one under each path."""
    out = {path: model}
    for name, child in model._modules.items():
        if child is not None:
            out |= modules_of(child, f"{path}.{name}" if path else name)
    return out


_PLAIN = frozenset({int, float, bool, str, type(None), tuple, list, dict, set})
Attributes: TypeAlias = list[tuple[str, Any]]
_EVERY = frozenset(nn.Module().__dict__)  # what every module has; most of its attributes


def own_attributes(module: nn.Module) -> Attributes:
    """What a module has beside the attributes that every module has."""
    return [(name, value) for name, value in module.__dict__.items() if name not in _EVERY]


def caches(module: nn.Module) -> list[str]:
    """The attributes in which a module keeps what it computed, until it is set to train."""
    if type(module).train is nn.Module.train:
        return []
    return [
        name
        for name, value in own_attributes(module)
        if type(value) is dict and value and all(map(torch.is_tensor, value.values()))
    ]


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and plain tensor attribute by path; shared ones under each path."""
    return tensors_of({path: (m, own_attributes(m)) for path, m in modules_of(model).items()})


def tensors_of(modules: Mapping[str, tuple[nn.Module, Attributes]]) -> dict[str, torch.Tensor]:
    """The same, of modules and their own attributes by path."""
    out: dict[str, torch.Tensor] = {}
    for path, (module, own) in modules.items():
        prefix = f"{path}." if path else ""
        for store in (module._parameters.items(), module._buffers.items(), own):
            for name, value in store:
                if type(value) not in _PLAIN and isinstance(value, torch.Tensor):
                    out[prefix + name] = value
    return out


def tensor_of(modules: Mapping[str, nn.Module], name: str) -> torch.Tensor | None:
    """The tensor of this path, if there is one."""
    path, _, attribute = name.rpartition(".")
    module = modules.get(path)
    if module is None:
        return None
    for store in (module._parameters, module._buffers, module.__dict__):
        value = store.get(attribute)
        if isinstance(value, torch.Tensor):
            return value
    return None
