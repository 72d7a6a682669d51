"""Every ATen operation of a run, written into its program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

from .calls import Calls
from .program import Node
from .values import SCALARS, Values

aten = torch.ops.aten

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


class Operations(TorchDispatchMode):
    """While open, every operation that is executed becomes a node of the program.

    Args:
        values: which tensor is which value.
        calls: which torch function runs it, in which module.
        supported: whether an operation is followed; any other is taken apart, if it can be.
    """

    def __init__(self, values: Values, calls: Calls, supported: Callable[[Any], bool]):
        super().__init__()
        self.values, self.calls, self.supported = values, calls, supported
        self._inplace: list[tuple[int, int]] = []  # the position of a node, and what it changes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so at every operation takes time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _EMPTY and 0 in args[0]:
            return torch.empty(*args, **kwargs)  # a placeholder: nothing is ever in it
        if not self.supported(func):
            decomposed = decompose(self, func, args, kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute one operation and record it."""
        if func in _AS_STRIDED and _as_it_is(*args, **kwargs):
            if func is aten.as_strided_.default:
                return args[0]
            func, args, kwargs = aten.alias.default, args[:1], {}
        found: list[torch.Tensor] = []
        own, program = self.values, self.values.program
        reference = own.reference
        noted = tuple([a if type(a) in SCALARS else reference(a, found) for a in args])
        noted_kwargs = {key: reference(arg, found) for key, arg in kwargs.items()}
        inputs = tuple([own.value(tensor).id for tensor in found])
        if own.shadow is not None:
            result = own.shadow.run(func, args, kwargs, found)
        else:
            result = func(*args, **kwargs)
        values, facts = program.values, _facts(func)
        live = any(values[ident].live for ident in inputs)
        if live and facts.looks:
            program.looks = True
            program.looked += inputs
        multiple = isinstance(result, (tuple, list))
        outputs = tuple(
            [
                own.bind(out, live).id
                if isinstance(out, torch.Tensor) and not _is_placeholder(out)
                else None
                for out in (result if multiple else (result,))
            ]
        )
        if facts.inplace:
            self._inplace.append((len(program.nodes), inputs[0]))
            if live and not values[inputs[0]].live:
                self._enliven(inputs[0])
        path, _ = self.calls.running[-1]
        op, call = facts.replayed, self.calls.current
        program.nodes.append(Node(op, noted, noted_kwargs, outputs, multiple, path, call, inputs))
        return result

    def _enliven(self, target: int) -> None:
        """Whatever views the memory that a live value was written to is live."""
        memory = self.values.memory.get(target)
        for ident, own in self.values.memory.items():
            if own == memory:
                self.values.program.values[ident].live = True

    def finish(self) -> None:
        """Leave what the outputs of the run depend on, in pure forms where that can be."""
        self._functionalise()
        self._inplace.clear()
        self.values.program.set_aside()

    def _functionalise(self) -> None:
        """Rewrite in-place operations that no other live name can see as their pure forms."""
        program = self.values.program
        changed = {self.values.memory.get(target, -1) for _, target in self._inplace}
        sharing: dict[int, list[int]] = {}
        for ident, memory in self.values.memory.items():
            if memory in changed:
                sharing.setdefault(memory, []).append(ident)
        names = {ident for idents in sharing.values() for ident in idents}
        last: dict[int, int] = {}
        for position, node in enumerate(program.nodes):
            last.update(dict.fromkeys(names.intersection(node.inputs), position))
        last.update((ident, len(program.nodes)) for ident in program.output_ids())
        for position, target in self._inplace:
            node = program.nodes[position]
            others = sharing.get(self.values.memory.get(target, -1), [])
            seen_later = any(
                ident < (node.outputs[0] or 0) and last.get(ident, -1) > position
                for ident in others
            )
            packet = getattr(aten, node.op._schema.name.split("::")[1][:-1], None)
            pure = getattr(packet, node.op._overloadname, None) if packet is not None else None
            if not seen_later and pure is not None and not pure._schema.is_mutable:
                node.op = pure


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
