"""Record one run of a model as a program, without changing the model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import TraceError
from .callers import Sites
from .program import Call, Invocation, Node, Program, Ref, Run, Value
from .shadow import META, Shadow, storage
from .stand_in import standing_in
from .structures import open_dataclasses
from .tagged import Attribute, Size, TaggedFloat, TaggedInt, noting_comparisons, tagged_roots

aten = torch.ops.aten


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


_SCALARS = frozenset({int, float, bool, str, type(None)})
_PLAIN = _SCALARS | {tuple, list, dict, set}
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


_NOTHING = torch.Size((0,))


def _is_placeholder(tensor: torch.Tensor) -> bool:
    """Whether this stands for what an operation does not give this time."""
    return tensor.shape == _NOTHING and tensor.is_floating_point()


# what was contiguous when recorded may not be in a replay
_REPLAYED = {aten.view.default: aten.reshape.default}
_AS_STRIDED = (aten.as_strided.default, aten.as_strided_.default)
_EMPTY = aten.empty.memory_format


class _Facts(NamedTuple):
    """What to know of an operation.

    Attributes:
        replayed: what is run in its place in a replay.
        inplace: whether it changes its first operand and returns it.
        looks: whether values decide what it returns to the code: a number, or how many rows.
    """

    replayed: Any
    inplace: bool
    looks: bool


@functools.cache
def _facts(func: Any) -> _Facts:
    name = func._schema.name
    return _Facts(
        _REPLAYED.get(func, func),
        name.endswith("_") and not name.endswith("__"),
        func is aten._local_scalar_dense.default or torch.Tag.dynamic_output_shape in func.tags,
    )


def _as_it_is(
    tensor: torch.Tensor, size: Any, stride: Any, storage_offset: int | None = None
) -> bool:
    """Whether as_strided gives the tensor itself: pooling ends so on channels-last images."""
    return (
        storage_offset in (None, tensor.storage_offset())
        and tuple(size) == tuple(tensor.shape)
        and all(n == 1 or a == b for n, a, b in zip(size, stride, tensor.stride(), strict=True))
    )


class _Dispatch(TorchDispatchMode):
    """Writes every ATen operation into the program."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so at every operation takes time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _EMPTY and 0 in args[0]:
            return torch.empty(*args, **kwargs)  # a placeholder: nothing is ever in it
        if not self.recorder.supported(func):
            decomposed = decompose(self, func, args, kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        return self.recorder.run(func, args, kwargs)


def decompose(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """An operation as those that it consists of, each under the mode.

    NotImplemented if it consists of no others.
    """
    if func in decomposition_table:
        with mode:
            return decomposition_table[func](*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        with mode:
            return func.decompose(*args, **kwargs)
    return NotImplemented


class _Functions(TorchFunctionMode):
    """Notes which torch function the model called with which integers, and tags sizes."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self.recorder
        if func == _SHAPE:  # a new wrapper each time
            return recorder.tag_shape(args[0], func(*args))
        if func is torch.Tensor.size:
            return recorder.tag_size(args, kwargs or {}, func(*args, **(kwargs or {})))
        name = function_name(func)
        recorder.counts[name] = recorder.counts.get(name, 0) + 1
        if func is torch.Tensor.numel:
            return math.prod(recorder.tag_shape(args[0], args[0].shape))
        kwargs = kwargs or {}
        outer, recorder.call = recorder.call, recorder.note(name, func, args, kwargs)
        wanted = name in _CELLS if recorder.call is None else _tells(name, args, kwargs)
        given = recorder.known((args, kwargs)) if wanted else None
        try:
            result = func(*args, **kwargs)
            if given is not None:
                recorder.returned(name, func, given, result)
            return result
        finally:
            recorder.call = outer


def function_name(func: Any) -> str:
    """What a torch function is called."""
    return str(getattr(func, "__name__", func))


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

_UNBIND, _STACK = torch.ops.aten.unbind.int, torch.ops.aten.stack.default
_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_ATTEND: Any = torch.nn.functional.scaled_dot_product_attention
_BETWEEN = frozenset({__file__, torch.overrides.__file__})  # of the code and a note of its call
_MODE = "__torch_function__"
_TORCH = os.path.join(torch.__path__[0], "")


Running: TypeAlias = tuple[str, dict[str, int]]
"""The path of a module that runs, and how often which torch functions were called before."""


class Recorder:
    """State of one recording: the program so far, and which tensor is which value."""

    def __init__(self, model: nn.Module, supported: Callable[[Any], bool]):
        self.supported = supported
        self.shadow: Shadow | None = None
        self.device = torch.device("cpu")
        self.program = Program()
        self.call: Call | None = None
        self.counts: dict[str, int] = {}  # calls so far of each torch function
        self.stack: list[Running] = [("", {})]
        self.modules = modules_of(model)
        self.paths = {id(m): path for path, m in reversed(self.modules.items())}
        self._refs: dict[int, tuple[Ref, object]] = {}  # by the id of a tensor; what watches it
        self._storage: dict[int, int] = {}
        self._weak: list[StorageWeakRef] = []
        self._inplace: list[tuple[int, int]] = []
        self.names: dict[int, str] = {}
        self.attributes = {path: (m, own_attributes(m)) for path, m in self.modules.items()}
        self.sites = Sites(self.paths, {path: own for path, (_, own) in self.attributes.items()})
        for name, tensor in tensors_of(self.attributes).items():
            first = self.names.setdefault(id(tensor), name)
            if isinstance(tensor, nn.Parameter):
                self.program.parameters[first] = tuple(tensor.shape)

    # ------------------------------------------------------------------ values
    def bind(self, tensor: torch.Tensor, live: bool) -> Ref:
        """A new value for a tensor, which from now on is known by it."""
        ref = Ref(len(self.program.values))
        self.program.values.append(Value(tuple(tensor.shape), tensor.dtype, live))
        key, shadow = id(tensor), self.shadow
        if tensor.is_meta or key in self.names:  # holds no memory, or is held by the model
            self._refs[key] = (ref, tensor)
        else:
            gone = functools.partial(self._forget, key, ref)
            self._refs[key] = (ref, weakref.ref(tensor, gone))
        try:
            self._storage[ref.id] = storage(tensor) if shadow is None else shadow.storage(tensor)
            if not tensor.is_meta:  # else another memory could get its number when it is freed
                self._weak.append(StorageWeakRef(tensor.untyped_storage()))
        except (RuntimeError, NotImplementedError):
            pass  # not every tensor has one
        return ref

    def _forget(self, key: int, ref: Ref, _: object) -> None:
        if key in self._refs and self._refs[key][0] is ref:
            del self._refs[key]

    def value(self, tensor: torch.Tensor) -> Ref:
        """The value that a tensor is; a tensor of the model or a constant if not met before."""
        known = self._refs.get(id(tensor))
        if known is not None:
            return known[0]
        ref = self.bind(tensor, live=False)
        name = self.names.get(id(tensor))
        if name is not None:
            self.program.tensors[name] = ref.id
        elif self.shadow is not None and tensor.is_meta:
            raise TraceError("a constant was made on the device of a shadow; its values are lost")
        else:
            self.program.constants[ref.id] = tensor
        return ref

    def reference(self, arg: Any, found: list[torch.Tensor]) -> Any:
        """An argument with its tensors as references; the tensors are added to `found`."""
        if isinstance(arg, torch.Tensor):
            found.append(arg)
            return self.value(arg)
        if type(arg) in (list, tuple):
            return [i if type(i) in _SCALARS else self.reference(i, found) for i in arg]
        if isinstance(arg, torch.device) and arg == META:
            return self.device
        if isinstance(arg, TaggedFloat):
            return float(arg)
        return int(arg) if isinstance(arg, TaggedInt) else arg

    # ------------------------------------------------------------------ operations
    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute one operation and record it."""
        if func in _AS_STRIDED and _as_it_is(*args, **kwargs):
            if func is aten.as_strided_.default:
                return args[0]
            func, args, kwargs = aten.alias.default, args[:1], {}
        found: list[torch.Tensor] = []
        reference = self.reference
        noted = tuple([a if type(a) in _SCALARS else reference(a, found) for a in args])
        noted_kwargs = {key: reference(arg, found) for key, arg in kwargs.items()}
        inputs = tuple([self._refs[id(tensor)][0].id for tensor in found])
        if self.shadow is not None:
            result = self.shadow.run(func, args, kwargs, found)
        else:
            result = func(*args, **kwargs)
        values, facts = self.program.values, _facts(func)
        live = any(values[ident].live for ident in inputs)
        if live and facts.looks:
            self.program.looks = True
            self.program.looked += inputs
        multiple = isinstance(result, (tuple, list))
        outputs = tuple(
            [
                self.bind(out, live).id
                if isinstance(out, torch.Tensor) and not _is_placeholder(out)
                else None
                for out in (result if multiple else (result,))
            ]
        )
        if facts.inplace:
            self._inplace.append((len(self.program.nodes), inputs[0]))
            if live and not values[inputs[0]].live:
                self._enliven(inputs[0])
        path, _ = self.stack[-1]
        op, call = facts.replayed, self.call
        self.program.nodes.append(
            Node(op, noted, noted_kwargs, outputs, multiple, path, call, inputs)
        )
        return result

    def _enliven(self, target: int) -> None:
        """Whatever views the memory that a live value was written to is live."""
        memory = self._storage.get(target)
        for ident, own in self._storage.items():
            if own == memory:
                self.program.values[ident].live = True

    def finish(self) -> None:
        """Leave what the outputs of the run depend on, in pure forms where that can be."""
        self._functionalise()
        self._inplace.clear()
        self.program.set_aside()

    def _functionalise(self) -> None:
        """Rewrite in-place operations that no other live name can see as their pure forms."""
        program = self.program
        changed = {self._storage.get(target, -1) for _, target in self._inplace}
        sharing: dict[int, list[int]] = {}
        for ident, memory in self._storage.items():
            if memory in changed:
                sharing.setdefault(memory, []).append(ident)
        names = {ident for idents in sharing.values() for ident in idents}
        last: dict[int, int] = {}
        for position, node in enumerate(program.nodes):
            last.update(dict.fromkeys(names.intersection(node.inputs), position))
        last.update((ident, len(program.nodes)) for ident in program.output_ids())
        for position, target in self._inplace:
            node = program.nodes[position]
            others = sharing.get(self._storage.get(target, -1), [])
            seen_later = any(
                ident < (node.outputs[0] or 0) and last.get(ident, -1) > position
                for ident in others
            )
            packet = getattr(aten, node.op._schema.name.split("::")[1][:-1], None)
            pure = getattr(packet, node.op._overloadname, None) if packet is not None else None
            if not seen_later and pure is not None and not pure._schema.is_mutable:
                node.op = pure

    # ------------------------------------------------------------------ calls and sizes
    def note(self, name: str, func: Any, args: Any, kwargs: Any) -> Call | None:
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
            size = self.tag_shape(args[0], args[0].shape)[-1] if args else 0
            floats += [size**-0.5] if size else []
        if not integers and not floats:
            return None
        path, before = self.stack[-1]
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

    def known(self, arg: Any) -> Any:
        """An argument with its tensors as references, -1 where one was not met before."""
        if type(arg) in _SCALARS:
            return arg
        if isinstance(arg, torch.Tensor):
            own = self._refs.get(id(arg))
            if own is not None:
                return own[0]
            return self.value(arg) if id(arg) in self.names else Ref(-1)
        if isinstance(arg, (list, tuple)):
            return [i if type(i) in _SCALARS else self.known(i) for i in arg]
        if type(arg) is dict:
            return {key: self.known(item) for key, item in arg.items()}
        return arg

    def returned(self, name: str, func: Any, given: Any, result: Any) -> None:
        """Take note of what a torch function returned, where that tells something."""
        args, kwargs = given
        if name in _CELLS:
            before = args[1] if len(args) > 1 else kwargs["hx"]
            self.program.states.append((before.id, self.known(result).id))
        elif name in _LAYERS:
            everything = [*args, *kwargs.values()]
            weights = max(i for i, arg in enumerate(everything) if isinstance(arg, list))
            before = everything[weights - 1]
            hidden, *cell = before if name == "lstm" else [before]
            made = self.known(result)[1]
            self.program.states += _of_layers(self.program.nodes, hidden.id, made.id)
            for other in cell:  # it takes a projection to be there where these two differ
                if self.program.values[hidden.id].shape != self.program.values[other.id].shape:
                    self.program.apart.append((hidden.id, other.id))
        if self.call is not None and name not in _INDEXING:
            self.call.invocation = Invocation(func, args, kwargs, self.known(result))
        elif self.call is not None and args[0].id >= 0:
            self._indexed(self.call, args[0].id)

    def _indexed(self, call: Call, value: int) -> None:
        """Take note of an indexing expression that states more bounds than PyTorch sliced by."""
        index = call.given[0][1] if call.given else None
        bounds = [i for i in (index if isinstance(index, list) else [index])
                  if isinstance(i, tuple) and any(n is not None for n in i)]  # fmt: skip
        own = itertools.takewhile(lambda node: node.call is call, reversed(self.program.nodes))
        sliced = [node.args[1] for node in own if node.op is aten.slice.Tensor]
        if len(sliced) < len(bounds):
            self.program.whole.append((call, value, sliced))

    def tag_shape(self, tensor: torch.Tensor, shape: torch.Size) -> torch.Size:
        if isinstance(tensor, FakeTensor):
            return shape  # a note in a program of torch.export on what it takes, not of this run
        ident = self.value(tensor).id
        return torch.Size([TaggedInt(n, Size(ident, d)) for d, n in enumerate(shape)])

    def tag_size(self, args: Any, kwargs: Any, result: Any) -> Any:
        if isinstance(result, torch.Size):
            return self.tag_shape(args[0], result)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return TaggedInt(result, Size(self.value(args[0]).id, dim % args[0].dim()))


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


@contextlib.contextmanager
def _observed(recorder: Recorder) -> Iterator[None]:
    """While open, modules hand out integer attributes with provenance, and tell when they run.

    Then all is as before.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    known = recorder.program.attributes
    try:
        # a shared module keeps its first path
        once = {id(module): (path, module) for path, module in reversed(recorder.modules.items())}
        for path, module in once.values():
            attributes = module.__dict__
            saved.append((attributes, dict(attributes)))
            own = recorder.attributes[path][1]
            kept = caches(module)
            forward = standing_in(module)
            attributes["forward"] = (
                forward if _states_itself(module) else _followed(forward, path, recorder)
            )
            for name, value in own:
                if type(value) is dict:  # what is put there meanwhile is gone with the copy
                    attributes[name] = (
                        {} if name in kept else _tagged_items(value, path, name, known)
                    )
                elif type(value) is int:
                    if value > 1:  # no smaller number is the size of something that can be cut
                        source = Attribute(path, name)
                        known[source] = value
                        attributes[name] = TaggedInt(value, source)
                elif type(value) is float:
                    recorder.program.floats[Attribute(path, name)] = value
                    attributes[name] = TaggedFloat(value, value)  # no cut changes it
                elif type(value) in (tuple, list) and set(map(type, value)) == {int}:
                    if max(value) <= 1:
                        continue
                    sources = [Attribute(path, name, i) for i in range(len(value))]
                    known.update(zip(sources, value, strict=True))
                    attributes[name] = type(value)(map(TaggedInt, value, sources))
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)


def _tagged_items(
    value: dict[Any, Any], path: str, name: str, known: dict[Attribute, int]
) -> dict[Any, Any]:
    """A copy of a dict attribute that hands out the integers in it with provenance."""
    out = dict(value)
    for key, item in value.items():
        if type(item) is int and item > 1 and type(key) is str and key.isidentifier():
            source = Attribute(path, name, key)
            known[source] = item
            out[key] = TaggedInt(item, source)
    return out


def _states_itself(module: nn.Module) -> bool:
    """Whether a module says what a copy of it holds, which leaves out what it is given to run."""
    own = getattr(type(module), "__getstate__", None)
    return own is not getattr(nn.Module, "__getstate__", None)


def _followed(forward: Callable[..., Any], path: str, recorder: Recorder) -> Callable[..., Any]:
    """A forward that says on a stack which module is running."""

    def run(*args: Any, **kwargs: Any) -> Any:
        recorder.stack.append((path, recorder.counts.copy()))
        try:
            return forward(*args, **kwargs)
        finally:
            recorder.stack.pop()

    run.__dict__["__func__"] = getattr(forward, "__func__", None)  # still a method, to who asks
    return run


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while open; every module's own mode and every buffer's content afterwards.

    So are the lists that recurrent layers hold their weights in too, which `functional_call` leaves
    with what it was given.
    """
    buffers = [(b, b._version, b.clone()) for b in model.buffers()]
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    held = [(m, list(m._flat_weights), list(m._flat_weight_refs)) for m in layers]
    try:
        with _mode(model.modules(), training=False):
            yield
    finally:
        for buffer, version, before in buffers:
            if buffer._version != version:
                buffer.data.copy_(before)
        for layer, weights, references in held:
            layer._flat_weights, layer._flat_weight_refs = weights, references


@contextlib.contextmanager
def _mode(modules: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    modules = list(modules)
    modes = [module for module in modules if module.training != training]
    buffers = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
    try:
        for module in modes:
            module.training = training
        yield
    finally:
        for module in modes:
            module.training = not training
        for held, before in buffers:
            held.update(before)


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # its own context manager warns of other settings
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    """What was given to torch.compile runs as it is written."""
    if "torch._dynamo" not in sys.modules:  # then nothing was, and to ask takes a second
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """What einops keeps of earlier calls is not used: numbers that have no provenance."""
    einops: Any = sys.modules.get("einops.einops")
    kept = getattr(einops, "_reconstruct_from_shape", None)
    if kept is None:
        yield
        return
    einops._reconstruct_from_shape = getattr(kept, "__wrapped__", kept)
    try:
        yield
    finally:
        einops._reconstruct_from_shape = kept


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """No fused fast paths, so that what runs is made of operations that can be followed."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            _without_onednn(),
            torch.backends.cudnn.flags(enabled=False),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def record(model: nn.Module, example_inputs: Any, supported: Callable[[Any], bool]) -> Program:
    """Run the model once in eval mode and return what it did; the model is left untouched.

    The run is on shapes alone; where that cannot be (the code looks at a value), it is for real,
    in the memory of one plain inference.

    Raises:
        TraceError: the forward raised, or returned no tensor.
    """
    open_dataclasses(example_inputs)
    call = as_call(example_inputs)
    inputs = input_tensors(example_inputs)
    if not inputs:
        raise TraceError("example_inputs holds no tensor; pass what model(...) is called with")
    recorder = Recorder(model, supported)
    try:
        shadow = recorder.shadow = Shadow(set(recorder.names), inputs[0].device)
        twins = pytree.tree_map_only(torch.Tensor, shadow.twin, call)
        with _mode(recorder.modules.values(), training=False):
            _run(model, recorder, twins)
    except Exception:  # noqa: BLE001 - whatever it is, the real run will tell
        recorder = Recorder(model, supported)
        try:
            with evaluating(model):
                _run(model, recorder, call)
        except Exception as error:
            raise TraceError(_why(model, recorder, inputs, error)) from error
    program = recorder.program
    if not program.output_ids():
        raise TraceError("the model returned no tensor, so there is nothing to follow")
    recorder.finish()
    program.on_shapes = recorder.shadow is not None
    if program.on_shapes and not program.parameters.keys() <= program.tensors.keys():
        _run_training(model, recorder, twins)
    return program


def _run_training(model: nn.Module, recorder: Recorder, call: Any) -> None:
    """Follow what runs in training mode alone (an auxiliary head), so that a cut fits it too."""
    program = recorder.program
    evaluated, tensors = (program.nodes, program.outputs), dict(program.tensors)
    program.nodes, dead = [], [*program.aside.nodes]
    try:
        with _mode(recorder.modules.values(), training=True), torch.random.fork_rng(devices=[]):
            _run(model, recorder, call)
        recorder.finish()
        program.aside = Run([*dead, *program.nodes], program.output_ids())
    except Exception:  # noqa: BLE001 - it may need more than these inputs, its targets for one
        program.tensors, program.aside = tensors, Run(dead)
    finally:
        program.nodes, program.outputs = evaluated


def _run(model: nn.Module, recorder: Recorder, call: Any) -> None:
    """One run on these inputs, written into the program."""
    program = recorder.program
    if not program.inputs:
        for leaf in pytree.tree_leaves(call):
            if isinstance(leaf, torch.Tensor):
                program.inputs.append(recorder.bind(leaf, live=True).id)
                recorder.device = recorder.shadow.device if recorder.shadow else leaf.device
    with (
        torch.no_grad(),
        _uncompiled(),
        _uncached(),
        _plain_kernels(),
        tagged_roots(),
        noting_comparisons(program.compared),
        _observed(recorder),
        _Dispatch(recorder),
        _Functions(recorder),
    ):
        args, kwargs = call
        program.keywords = tuple(kwargs)
        output = model(*args, **kwargs)
        open_dataclasses(output)
        program.outputs = pytree.tree_map_only(torch.Tensor, recorder.value, output)


def _raised_in(recorder: Recorder, error: Exception) -> str:
    """The path of the innermost module in whose code an error was raised."""
    where, frame = "", error.__traceback__
    while frame is not None:
        where = recorder.paths.get(id(frame.tb_frame.f_locals.get("self")), "") or where
        frame = frame.tb_next
    return where


def _why(model: nn.Module, recorder: Recorder, inputs: list[torch.Tensor], error: Exception) -> str:
    """A message for a forward that raised: where, and the likely mend."""
    where = _raised_in(recorder, error) or type(model).__name__
    given = ", ".join(
        f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}" for t in inputs
    )
    own = next(iter(model.parameters()), None)
    hint = ""
    if own is not None:
        dtype = str(own.dtype).removeprefix("torch.")
        hint = f" (the model's parameters are {dtype} on {own.device})"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"the model's forward raised {type(error).__name__} in {where!r}: {first}; "
        f"it was called with {given}{hint}; check that model(example_inputs) runs"
    )
