"""Bake weights that are computed from others: what a norm made of them becomes the weight."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..trace.model import model_tensors

M = TypeVar("M", bound=nn.Module)


def bake(model: M, *, inplace: bool = False) -> M:
    """The model with every parametrised weight as the plain parameter that it stands for.

    Spectral norm divides a weight by a number that all of its columns share, so that a cut is
    exact only if that number is taken anew. Baked, the weight keeps the number that it has, and the
    cut is exact. The same goes for whatever `torch.nn.utils.parametrize` has registered, and for
    the older `weight_norm` and `spectral_norm`.

    Args:
        model: any module; one without such weights comes back as it is.
        inplace: bake the model itself instead of a copy.

    Returns:
        The model, which computes the same function in eval mode.

    >>> import torch, secateurs as sc
    >>> norm = torch.nn.utils.parametrizations.spectral_norm
    >>> layers = norm(torch.nn.Linear(4, 8)), torch.nn.ReLU(), norm(torch.nn.Linear(8, 2))
    >>> net, x = torch.nn.Sequential(*layers).eval(), torch.zeros(1, 4)
    >>> sc.trace(net, x).groups[0].exact, sc.trace(sc.bake(net), x).groups[0].exact
    (False, True)
    """
    if not inplace:
        # the older norms leave a weight behind that is not copied
        left = (tensor for tensor in model_tensors(model).values() if not tensor.is_leaf)
        memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in left}
        model = copy.deepcopy(model, memo)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # a norm takes a step at every look while it trains
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast(nn.ModuleDict, module.parametrizations)):
                parametrize.remove_parametrizations(module, name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
    for module, training in modes:
        module.training = training
    return model
