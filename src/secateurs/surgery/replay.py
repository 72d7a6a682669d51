"""Serve a cut that the model's own code cannot run: replay what it did, on the cut tensors.

The model keeps its modules, its tensors and their names; the tensors are cut. In place of its code
runs what the code did with the uncut tensors, as recorded, with the sizes that are stated there
rewritten. There is one recording for each shape of inputs: the code runs once more, on shapes
alone, when another comes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import PlanError, TraceError
from ..trace.program import Program
from ..trace.record import model_tensors, modules_of
from ..trace.static import shrunk

if TYPE_CHECKING:
    from ..plan import Plan

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)


class Recordings(dict[Hashable, Program]):
    """The programs of a cut model by the shapes of its inputs; a file holds none of them."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan

    def __deepcopy__(self, memo: object) -> Recordings:
        out = Recordings(self.plan)
        out.update(self)
        return out

    def __reduce__(self) -> tuple[type[Recordings], tuple[Plan]]:
        return Recordings, (self.plan,)


class Replayed(nn.Module):
    """A model that was cut where its code cannot be mended, and is served as a static program.

    `apply` makes it for a plan with `replay`. Its class is a subclass of this and of the model's
    own class; parameters and buffers are under their old names, cut, and can be trained and saved
    as ever. What is static: in training mode, too, it runs as in eval mode (no dropout, no new
    statistics); the code may look at shapes, never at values; and the integers that describe its
    modules (`out_features`) are those before the cut, so that only the whole can be called.

    >>> import torch, secateurs as sc
    >>> class Net(torch.nn.Linear):
    ...     def forward(self, x):
    ...         return (super().forward(x) @ super().forward(x).mT).sum((1, 2)) / float(len(x))
    """

    recordings: Recordings

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the forward of the model's own class.

        Raises:
            TraceError: its code looks at values, or cuts other units for these inputs.
        """
        if args and kwargs:
            args, kwargs = (), _named(self, args, kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        key = (spec, *map(_described, leaves))
        if key not in self.recordings:
            self.recordings[key] = _recorded(self, kwargs or args)
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return self.recordings[key].replay(model_tensors(self), inputs)

    def extra_repr(self) -> str:
        """Said first when the model is printed."""
        return "a static program; the sizes of its modules are those before the cut"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (_own_class(self),), self.__dict__


def serve(model: nn.Module, plan: Plan) -> None:
    """Make a model whose tensors were cut one that replays its code."""
    model.__class__ = _class_for(type(model))
    model.__dict__["recordings"] = Recordings(plan)


def check_served(model: nn.Module) -> None:
    """Refuse what cannot be made a static program.

    Raises:
        PlanError: it is a wrapper around the model, or its forward is not that of its class.
    """
    compiled = type(model).__module__.startswith("torch._dynamo")
    if isinstance(model, _WRAPPERS) or compiled:
        raise PlanError(
            f"{type(model).__name__} cannot be served as a static program; trace and cut the model "
            "that it wraps, and wrap the result anew"
        )
    if "forward" in model.__dict__:
        raise PlanError(
            f"{type(model).__name__} has a forward of its own in place of that of its class; a "
            "static program would not run it. Cut what needs a replay first"
        )


@functools.cache
def _class_for(own: type[nn.Module]) -> type[nn.Module]:
    return type(f"Replayed{own.__name__}", (Replayed, own), {"__module__": own.__module__})


def _own_class(model: Replayed) -> type[nn.Module]:
    own: type[nn.Module] = type(model).__bases__[1]
    return own


def _blank(own: type[nn.Module]) -> nn.Module:
    cls = _class_for(own)
    return cls.__new__(cls)


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return type(leaf), leaf


def _named(model: Replayed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    forward = inspect.signature(_own_class(model).forward)
    return {**dict(zip(list(forward.parameters)[1:], args, strict=False)), **kwargs}


def _recorded(model: Replayed, example_inputs: Any) -> Program:
    """What the uncut model does with inputs of these shapes, for the cut tensors.

    Raises:
        TraceError: it looks at values, or the units of the plan hold other slices here.
    """
    from ..gates import trace
    from ..plan import slices_of

    plan = model.recordings.plan
    inputs = pytree.tree_map_only(torch.Tensor, torch.zeros_like, example_inputs)
    with _uncut(model, plan):
        graph = trace(model, inputs, replay=True)
    selection = graph.select(plan.groups)
    if graph.program.looks or slices_of(graph, selection) != plan.tensors:
        raise TraceError(
            f"{type(model).__name__} is a static program, and for inputs of these shapes its code "
            "looks at values or is cut in another way; call it with inputs such as it was traced on"
        )
    return shrunk(graph.analysis, selection)


@contextmanager
def _uncut(model: Replayed, plan: Plan) -> Iterator[None]:
    """While open, the model has its own class, and stand-ins without memory for what was cut."""
    static, own = type(model), model_tensors(model)
    whole: dict[int, torch.Tensor] = {}
    for name, slices in plan.tensors.items():
        tensor = own[name]
        made = torch.empty(slices.shape, dtype=tensor.dtype, device="meta")
        whole[id(tensor)] = nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made
    saved: list[tuple[dict[str, Any], str, Any]] = []
    store: dict[str, Any]
    recordings = model.__dict__.pop("recordings")
    model.__class__ = _own_class(model)
    try:
        for module in modules_of(model).values():
            for store in (module._parameters, module._buffers, module.__dict__):
                for name, value in list(store.items()):
                    if id(value) in whole:
                        saved.append((store, name, value))
                        store[name] = whole[id(value)]
        yield
    finally:
        for store, name, value in saved:
            store[name] = value
        model.__class__ = static
        model.__dict__["recordings"] = recordings
