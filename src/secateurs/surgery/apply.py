"""Apply a plan: a smaller model out of a model, whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..errors import PlanError
from ..frontend import FrontEnd
from ..plan import Plan
from ..slices import Known
from ..trace.model import caches, model_tensors, modules_of
from ..trace.stand_in import adopt, refresh
from .config import mend_config
from .edits import Edit
from .fold import Scale
from .replay import check_served, serve
from .restate import install
from .rewritten import rewritten

M = TypeVar("M", bound=nn.Module)


def apply(model: M, plan: Plan, *, inplace: bool = False) -> M:
    """The model without the units of a plan.

    Args:
        model: the model that the plan was made for.
        plan: from `Graph.plan`, or read from a file.
        inplace: cut the model itself (its parameters stay the same objects) instead of a copy.

    Returns:
        The smaller model; a `Replayed` one if the plan is served by replay. A module in whose code
        a number is rewritten (`plan.edits`) becomes one of a subclass, by the name of its class:
        `isinstance` holds, `type(...) is` does not. `torch.save` of the whole model keeps it, and
        to load that needs the source of the class, and this library.

    Raises:
        PlanError: the plan does not fit the model; nothing was changed.

    Warns:
        UserWarning: the model is built from a config, which cannot say what was cut.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> plan = sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]})
    >>> sc.apply(net, plan)
    Sequential(
      (0): Linear(in_features=4, out_features=6, bias=True)
      (1): Linear(in_features=6, out_features=2, bias=True)
    )
    """
    model = cut(model, plan, inplace=inplace)
    mend_config(model, plan)
    return model


def cut(model: M, plan: Plan, *, inplace: bool = False) -> M:
    """The same without a look at the configuration that the model was built from.

    To find out what that must say takes time: who cuts many times does it once, at the end.
    """
    if isinstance(model, FrontEnd):
        return cast(M, model.cut(plan, inplace=inplace))
    modules = modules_of(model)
    if plan.replay:
        check_served(model)
    if inplace and any(
        isinstance(m, nn.parallel.DistributedDataParallel) for m in modules.values()
    ):
        raise PlanError(
            "DistributedDataParallel keeps buckets of the sizes that it was built with; "
            "cut a copy, or cut model.module and wrap it anew"
        )
    own = plan.tensors_in(modules)
    attributes = _mended(modules, plan.attributes)
    classes = _rewritten(modules, plan.edits)
    smaller = smaller_tensors(plan, own)
    if not inplace:
        # the copy shares nothing with the model, and never holds the full-size tensors
        memo: dict[int, Any] = {
            id(own[name]): _twin(own[name], new) for name, new in smaller.items()
        }
        for tensor in model_tensors(model).values():
            if not tensor.is_leaf:  # the old weight_norm leaves one behind at every run
                memo.setdefault(id(tensor), tensor.detach().clone())
        for module in modules.values():
            memo.update((id(module.__dict__[name]), {}) for name in caches(module))
        model = copy.deepcopy(model, memo)
        modules = modules_of(model)
    else:
        for name, new in smaller.items():
            own[name].data = new
            own[name].grad = None
    for (path, attribute), value in attributes.items():
        modules[path].__dict__[attribute] = value
        refresh(modules[path])
    for path in {name.rpartition(".")[0] for name in plan.tensors}:
        modules[path].__dict__.update((name, {}) for name in caches(modules[path]))
    for path, own_class in classes.items():
        modules[path].__class__ = own_class
    for restated in plan.restated:
        install(modules[restated.module], restated)
    if plan.replay:
        serve(model, plan)
    else:
        adopt(modules, {name.rpartition(".")[0] for name in plan.tensors})
    return model


def smaller_tensors(plan: Plan, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a plan leaves of the tensors that it cuts, by name."""
    known: Known = {}
    factors = _factors(plan)
    return {
        name: slices.cut(_scaled(own[name], factors.get(name, [])), known)
        for name, slices in plan.tensors.items()
    }


def _factors(plan: Plan) -> dict[str, list[Scale]]:
    out: dict[str, list[Scale]] = {}
    for scale in plan.scales:
        out.setdefault(scale.tensor, []).append(scale)
    return out


def _scaled(tensor: torch.Tensor, scales: list[Scale]) -> torch.Tensor:
    """The tensor, or a copy of it with the rows of these scales multiplied."""
    if scales:
        tensor = tensor.detach().clone()
    for scale in scales:
        index = torch.tensor(scale.indices, device=tensor.device)
        rows = tensor.index_select(scale.dim, index) * scale.factor
        tensor.index_copy_(scale.dim, index, rows)
    return tensor


def _twin(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new.requires_grad_(old.requires_grad)


def _mended(
    modules: dict[str, nn.Module], changes: Mapping[str, tuple[int, int]]
) -> dict[tuple[str, str], Any]:
    """(module path, attribute) -> what it becomes; the model is checked and left as it is."""
    out: dict[tuple[str, str], Any] = {}
    for name, (old, new) in changes.items():
        path, _, attribute = name.rpartition(".")
        attribute, bracket, item = attribute.partition("[")
        whole = modules[path].__dict__.get(attribute) if path in modules else None
        index: Any = item[:-1] if bracket else None
        value: Any = whole
        if isinstance(whole, dict):
            value = whole.get(index)
        elif bracket and isinstance(whole, (tuple, list)) and index.isdecimal():
            index = int(index)
            value = whole[index] if index < len(whole) else None
        if value != old or isinstance(value, bool):
            raise PlanError(f"the plan does not fit this model: {name} is {value!r}, not {old}")
        if not isinstance(whole, (tuple, list, dict)):
            out[path, attribute] = new
        else:
            items = out.get((path, attribute), whole)
            items = dict(items) if isinstance(whole, dict) else list(items)
            items[index] = new
            out[path, attribute] = type(whole)(items)
    return out


# ---------------------------------------------------------------------- numbers in the code
def _rewritten(modules: dict[str, nn.Module], edits: Iterable[Edit]) -> dict[str, Any]:
    """Module path -> the class whose methods say these numbers."""
    wanted: dict[str, list[Edit]] = {}
    for edit in edits:
        wanted.setdefault(edit.module, []).append(edit)
    out = {}
    for path, own in wanted.items():
        found = rewritten(modules[path], own) if path in modules else None
        if found is None:
            first = own[0]
            raise PlanError(
                f"the plan does not fit this model: the source of {path or 'the model'}."
                f"{first.method} does not have {first.text!r}"
            )
        out[path] = found
    return out
