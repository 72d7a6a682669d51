"""Serve a cut that the model's own code cannot run: replay what it did, on the cut tensors.

The model keeps its modules, its tensors and their names; the tensors are cut. In place of its code
runs what the code did with the uncut tensors, as recorded, with the sizes that are stated there
rewritten. There is one recording for each shape of inputs: the code runs once more, on shapes
alone, when another comes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import PlanError, TraceError
from ..trace.model import model_tensors, modules_of
from ..trace.program import Program, is_plain
from ..trace.shadow import META
from ..trace.static import shrunk

if TYPE_CHECKING:
    from ..plan import Plan

KEPT = 32  # recordings of a model at a time; the oldest goes first
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
    >>> WIDTH = {"hidden": 8}
    >>> class Net(torch.nn.Sequential):
    ...     def forward(self, x):
    ...         return self[1](self[0](x).view(-1, WIDTH["hidden"]))
    >>> net = Net(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> plan = sc.trace(net, torch.zeros(1, 4), replay=True).plan({"0": [1, 5]})
    >>> small = sc.apply(net, plan)
    >>> type(small).__name__, small[0].weight.shape, small(torch.zeros(3, 4)).shape
    ('ReplayedNet', torch.Size([6, 4]), torch.Size([3, 2]))
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
            program = _recorded(self, kwargs or args)
            if len(self.recordings) == KEPT:
                del self.recordings[next(iter(self.recordings))]
            self.recordings[key] = program
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return self.recordings[key].replay(model_tensors(self), inputs)

    def extra_repr(self) -> str:
        """Said first when the model is printed."""
        return "a static program; the sizes of its modules are those before the cut"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (_own_class(self),), self.__dict__


def serve(model: nn.Module, plan: Plan) -> None:
    """Make a model whose tensors were cut one that replays its code."""
    own: Any = type(model)
    model.__class__ = _class_for(own)
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
def _class_for(own: Any) -> Any:
    return type(f"Replayed{own.__name__}", (Replayed, own), {"__module__": own.__module__})


def _own_class(model: nn.Module) -> Any:
    return type(model).__bases__[1]


def _blank(own: Any) -> Any:
    cls = _class_for(own)
    return cls.__new__(cls)


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    if not is_plain(leaf):
        raise TraceError(
            f"a static program cannot be given a {type(leaf).__name__}: tensors and plain values "
            "only, in tuples, lists, dicts or dataclasses"
        )
    return type(leaf), leaf


def _named(model: Replayed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    parameters = inspect.signature(_own_class(model).forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    if len(args) > len(names):
        raise TraceError(f"{type(model).__name__} takes these arguments by name only")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _recorded(model: Replayed, example_inputs: Any) -> Program:
    """What the uncut model does with inputs of these shapes, for the cut tensors.

    Raises:
        TraceError: it looks at values, or the units of the plan hold other slices here.
    """
    from ..gates import grouped
    from ..planning import slices_of

    plan = model.recordings.plan
    inputs = pytree.tree_map_only(torch.Tensor, torch.zeros_like, example_inputs)
    devices = [t.device for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    device = devices[0] if devices else torch.device("cpu")
    with torch.autocast(device.type, enabled=False):  # it takes its part in the replay
        try:
            with _uncut(model, plan, META):
                graph = grouped(model, inputs, replay=True)
        except TraceError:  # the code needs more than shapes
            with _uncut(model, plan, device):
                graph = grouped(model, inputs, replay=True)
    selection = graph.select(plan.groups)
    if graph.program.looks or slices_of(graph, selection) != plan.tensors:
        raise TraceError(
            f"{type(model).__name__} is a static program, and for inputs of these shapes its code "
            "looks at values or is cut in another way; call it with inputs such as it was traced on"
        )
    return shrunk(graph.analysis, selection)


@contextmanager
def _uncut(model: Replayed, plan: Plan, device: torch.device) -> Iterator[None]:
    """While open, the model has its own class, and stand-ins on a device for what was cut."""
    static, own = type(model), model_tensors(model)
    whole: dict[int, torch.Tensor] = {}
    for name, slices in plan.tensors.items():
        tensor = own[name]
        made = torch.zeros(slices.shape, dtype=tensor.dtype, device=device)
        whole[id(tensor)] = nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made
    saved: list[tuple[dict[str, Any], str, Any]] = []
    recordings = model.__dict__.pop("recordings")
    model.__class__ = _own_class(model)
    try:
        for module in modules_of(model).values():
            stores: Iterable[Any] = (module._parameters, module._buffers, module.__dict__)
            for store in stores:
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
