"""Which torch functions a model calls, with which numbers, and in whose code."""

from __future__ import annotations

import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .callers import Sites
from .program import Call, Invocation, Node
from .tagged import TaggedFloat, TaggedInt
from .values import Values

aten = torch.ops.aten

# The functions of PyTorch whose integers are sizes or bounds, and those where a list of them is.
_STATES_SIZES = frozenset(
    "view reshape unflatten expand broadcast_to __getitem__ __setitem__ narrow split "
    "split_with_sizes unsafe_split unsafe_split_with_sizes zeros ones full empty rand randn "
    "new_zeros new_ones new_full new_empty layer_norm rms_norm group_norm conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d histc".split()
)
_MAY_STATE_SIZES = frozenset({"tensor_split", "hsplit", "vsplit", "dsplit"})
_INDEXING = frozenset({"__getitem__", "__setitem__"})
_CELLS = frozenset({"rnn_tanh_cell", "rnn_relu_cell"})  # others combine the two states
_LAYERS = frozenset({"rnn_tanh", "rnn_relu", "gru", "lstm"})

_UNBIND, _STACK = aten.unbind.int, aten.stack.default
_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_ATTEND: Any = torch.nn.functional.scaled_dot_product_attention
_BETWEEN = frozenset({__file__, torch.overrides.__file__})  # of the code and a note of its call
_MODE = "__torch_function__"
_TORCH = os.path.join(torch.__path__[0], "")

Running: TypeAlias = tuple[str, dict[str, int]]
"""The path of a module that runs, and how often which torch functions were called before."""


class Calls(TorchFunctionMode):
    """While open, every torch function that is called is noted, and sizes are tagged.

    Args:
        values: which tensor is which value.
        sites: finds whose code called.
    """

    def __init__(self, values: Values, sites: Sites):
        super().__init__()
        self.values, self.sites, self.program = values, sites, values.program
        self.current: Call | None = None
        self.counts: dict[str, int] = {}  # calls so far of each torch function
        self.running: list[Running] = [("", {})]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = self.values
        if func == _SHAPE:  # a new wrapper each time
            return values.tag_shape(args[0], func(*args))
        if func is torch.Tensor.size:
            return values.tag_size(args, kwargs or {}, func(*args, **(kwargs or {})))
        name = function_name(func)
        self.counts[name] = self.counts.get(name, 0) + 1
        if func is torch.Tensor.numel:
            return math.prod(values.tag_shape(args[0], args[0].shape))
        kwargs = kwargs or {}
        outer, self.current = self.current, self._note(name, func, args, kwargs)
        wanted = name in _CELLS if self.current is None else _tells(name, args, kwargs)
        given = values.known((args, kwargs)) if wanted else None
        try:
            result = func(*args, **kwargs)
            if given is not None:
                self._returned(name, func, given, result)
            return result
        finally:
            self.current = outer

    def within(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that says which module is running."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.running.append((path, self.counts.copy()))
            try:
                return forward(*args, **kwargs)
            finally:
                self.running.pop()

        run.__dict__["__func__"] = getattr(forward, "__func__", None)  # still a method, to who asks
        return run

    def _note(self, name: str, func: Any, args: Any, kwargs: Any) -> Call | None:
        """A torch function that is called, if the numbers that it is given tell something."""
        integers: list[int] = []
        floats: list[TaggedFloat] = []
        plain: list[float] = []
        _add_numbers(integers, floats, plain, args)
        if kwargs:
            _add_numbers(integers, floats, plain, kwargs.values())
        if plain:
            self._written(func, plain)
        if func is _ATTEND and kwargs.get("scale") is None:
            size = self.values.tag_shape(args[0], args[0].shape)[-1] if args else 0
            floats += [size**-0.5] if size else []
        if not integers and not floats:
            return None
        path, before = self.running[-1]
        call = Call(name, integers, floats, path, self.counts[name] - before.get(name, 0))
        if any(abs(int(i)) > 1 for i in integers):
            count = itertools.count()
            form = [_form(arg, count) for arg in (*args, *kwargs.values())]
            call.given = (
                tuple(form[: len(args)]),
                dict(zip(kwargs, form[len(args) :], strict=True)),
            )
            frame = inspect.currentframe()
            while frame is not None and (
                frame.f_code.co_filename == __file__
                or frame.f_code.co_filename.startswith(_TORCH)
                or frame.f_code.co_name == _MODE  # another one's, which hands the call on
            ):
                frame = frame.f_back
            if frame is not None:
                call.code, call.line, call.at = frame.f_code, frame.f_lineno, frame.f_lasti
                call.owner, call.site = self.sites.find(frame)
        return call

    def _written(self, func: Any, plain: Iterable[float]) -> None:
        """Note floats of unknown origin that the code gave to a torch function, and where."""
        frame = inspect.currentframe()
        own = getattr(func, "__code__", None)
        while frame is not None and (
            frame.f_code.co_filename in _BETWEEN
            or frame.f_code is own
            or frame.f_code.co_name == _MODE
        ):
            frame = frame.f_back
        if frame is not None:
            for number in plain:
                sites = self.program.written.setdefault((frame.f_code, number), set())
                sites.add(frame.f_lasti)

    def _returned(self, name: str, func: Any, given: Any, result: Any) -> None:
        """Take note of what a torch function returned, where that tells something."""
        args, kwargs = given
        if name in _CELLS:
            before = args[1] if len(args) > 1 else kwargs["hx"]
            self.program.states.append((before.id, self.values.known(result).id))
        elif name in _LAYERS:
            everything = [*args, *kwargs.values()]
            weights = max(i for i, arg in enumerate(everything) if isinstance(arg, list))
            before = everything[weights - 1]
            hidden, *cell = before if name == "lstm" else [before]
            made = self.values.known(result)[1]
            self.program.states += _of_layers(self.program.nodes, hidden.id, made.id)
            for other in cell:  # it takes a projection to be there where these two differ
                if self.program.values[hidden.id].shape != self.program.values[other.id].shape:
                    self.program.apart.append((hidden.id, other.id))
        if self.current is not None and name not in _INDEXING:
            self.current.invocation = Invocation(func, args, kwargs, self.values.known(result))
        elif self.current is not None and args[0].id >= 0:
            self._indexed(self.current, args[0].id)

    def _indexed(self, call: Call, value: int) -> None:
        """Take note of an indexing expression that states more bounds than PyTorch sliced by."""
        index = call.given[0][1] if call.given else None
        bounds = [i for i in (index if isinstance(index, list) else [index])
                  if isinstance(i, tuple) and any(n is not None for n in i)]  # fmt: skip
        own = itertools.takewhile(lambda node: node.call is call, reversed(self.program.nodes))
        sliced = [node.args[1] for node in own if node.op is aten.slice.Tensor]
        if len(sliced) < len(bounds):
            self.program.whole.append((call, value, sliced))


def function_name(func: Any) -> str:
    """What a torch function is called."""
    return str(getattr(func, "__name__", func))


def _of_layers(nodes: Iterable[Node], before: int, after: int) -> Iterator[tuple[int, int]]:
    """What each layer of a kernel was given and made, of its states before and after.

    The kernel takes the ones apart and stacks the others; where it runs one step from zeros,
    nothing else tells that they belong together.
    """
    given = [n.outputs for n in nodes if n.op is _UNBIND and n.inputs == (before,)]
    made = [n.inputs for n in nodes if n.op is _STACK and n.outputs == (after,)]
    for one, other in zip(itertools.chain(*given[-1:]), itertools.chain(*made), strict=False):
        if one is not None:
            yield one, other


def _tells(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether more than the integers of a call matter: they are no sizes, or they index."""
    if name in _MAY_STATE_SIZES:
        return not any(isinstance(arg, (list, tuple)) for arg in (*args, *kwargs.values()))
    return name not in _STATES_SIZES or name in _INDEXING


_NUMBERLESS = frozenset({torch.Tensor, nn.Parameter, bool, str, type(None)})


def _add_numbers(
    integers: list[int], floats: list[TaggedFloat], plain: list[float], args: Iterable[Any]
) -> None:
    """The integers and floats in a function's arguments, in order; bounds of slices too.

    Of floats of unknown origin, 0 and 1 are left out: neither is computed from a size.
    """
    for arg in args:
        kind = type(arg)
        if kind in _NUMBERLESS:
            continue
        if kind is TaggedInt or kind is int:
            integers.append(arg)
        elif kind is TaggedFloat:
            floats.append(arg)
        elif isinstance(arg, (tuple, list)):
            _add_numbers(integers, floats, plain, arg)
        elif isinstance(arg, slice):
            _add_numbers(integers, floats, plain, (arg.start, arg.stop, arg.step))
        elif isinstance(arg, float) and arg not in (0.0, 1.0):
            plain.append(float(arg))


def _form(arg: Any, count: Iterator[int]) -> Any:
    """The form of an argument; its integers are counted as `_add_numbers` meets them."""
    if type(arg) is TaggedInt or type(arg) is int:
        return next(count)
    if isinstance(arg, (tuple, list)):
        return [_form(item, count) for item in arg]
    if isinstance(arg, slice):
        return tuple(_form(bound, count) for bound in (arg.start, arg.stop, arg.step))
    return arg if arg is None or arg is Ellipsis else "other"
