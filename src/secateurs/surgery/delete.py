"""Delete channels, neurons or any other units, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from ..gates import trace, verify
from .apply import apply

M = TypeVar("M", bound=nn.Module)


def delete_channels(
    model: M,
    units: Mapping[str, Iterable[int]],
    example_inputs: Any = None,
    *,
    inplace: bool = False,
) -> M:
    """Delete units with everything that is coupled to them, and check the result.

    Args:
        model: any module that runs.
        units: group name, or the path of any module in the group -> unit indices.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        inplace: cut the model itself, after a copy has passed the check.

    Returns:
        The smaller model.

    Raises:
        TraceError, PlanError, MendError: the cut cannot be made; nothing was changed.
        LawError: the cut changed more than the deleted units; nothing was changed.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    >>> sc.delete_channels(net, {"0": [0, 3]}, torch.zeros(1, 3, 9, 9))[0].weight.shape
    torch.Size([6, 3, 3, 3])
    """
    graph = trace(model, example_inputs)
    plan = graph.plan(units)
    small = apply(model, plan)
    verify(model, small, plan, example_inputs, graph=graph).demand()
    return apply(model, plan, inplace=True) if inplace else small
