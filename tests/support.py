"""What several tests need: numbers that hide nothing, and what a model looks like."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def randomise(model: nn.Module, seed: int = 0, *, weights: bool = False) -> nn.Module:
    """Draw every vector and every statistic anew, so that no slice passes unnoticed."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif "layer_scale" in name or (
                tensor.dim() < 2 and name.endswith(("running_var", "weight"))
            ):
                tensor.uniform_(0.5, 1.5, generator=draw)
            elif tensor.dim() < 2:
                tensor.uniform_(-0.5, 0.5, generator=draw)
            elif weights:
                bound = (6 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound, generator=draw)
    return model


def doubled(thing: Any, seed: int = 0) -> Any:
    """A randomised model in eval mode, or any nest of tensors, in float64; indices stay."""
    if isinstance(thing, nn.Module):
        return randomise(thing.double(), seed).eval()
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, thing)


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors that the model returns in eval mode."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            result = model.eval()(**inputs)
        else:
            result = model.eval()(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a verb must not change: tensors, modes, attributes with their types, hooks."""
    out: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in module.__dict__.items():
            out[f"{path}.{name}"] = (type(value), _frozen_copy(value))
    for name, tensor in model.state_dict(keep_vars=True).items():
        out[f"tensor {name}"] = (id(tensor), tensor.requires_grad, tensor.grad is None)
        out[f"bits {name}"] = tensor.detach().numpy().tobytes()
    return out


def _frozen_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, id(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return tuple((type(item), _frozen_copy(item)) for item in value)
    if isinstance(value, weakref.ref):  # recurrent layers make theirs anew when they are copied
        return id(value())
    return repr(value)


def relative_error(wanted: list[Tensor], given: list[Tensor]) -> float:
    """The largest deviation over the largest value, of any pair; infinite for other shapes."""
    if [t.shape for t in wanted] != [t.shape for t in given]:
        return float("inf")
    return max(
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))  # all may be zero
        for a, b in zip(wanted, given, strict=True)
    )
