"""A program: the ATen operations that one run of a model executed, and how to replay them."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils import _pytree as pytree

from ..errors import TraceError
from .tagged import Attribute, Comparison, TaggedFloat


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to value number `id` of a program."""

    id: int


def owner(tensor: str) -> str:
    """The path of the module, or of the Keras layer, that a tensor belongs to.

    >>> owner("layer1.0.conv1.weight"), owner("conv2d/kernel"), owner("scale")
    ('layer1.0.conv1', 'conv2d', '')
    """
    return tensor[: max(tensor.rfind("."), tensor.rfind("/"), 0)]


def is_plain(leaf: Any) -> bool:
    """Whether what goes into a model or comes out of it is a value that a recording can keep."""
    return leaf is None or isinstance(
        leaf, (Ref, bool, int, float, str, torch.dtype, torch.device, enum.Enum)
    )


def can_size(number: int) -> bool:
    """Whether a number can be a size, or the bound of a slice from either end."""
    return number > 0 or number < -1


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a torch function was given, and what it returned; tensors are references.

    A tensor that is no value of the program is the reference -1.
    """

    function: Any
    args: Any
    kwargs: Any
    result: Any


class Caller(NamedTuple):
    """A call in the model's code that must be written as one of these texts, such as 'self.mix'."""

    code: CodeType
    line: int
    at: int
    texts: frozenset[str]


class Site(NamedTuple):
    """The function in which a call stands, and how the model's code comes to it.

    It is a method of the module `owner`, or a plain function `helper` that this method calls by its
    name. Who replaces them there is sure to be heard if all `callers` are written so.
    """

    owner: str
    method: str
    helper: str
    function: Any  # a FunctionType, which a type checker would take for a method here
    callers: tuple[Caller, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return self.owner, self.method, self.helper


@dataclass(slots=True)
class Call:
    """One torch function that the model called; its integers, and where in whose code.

    `floats` are those of its floats that were computed from a size; `module` was running, and this
    was call number `ordinal` of that function in its run, its children's calls counted too.
    `invocation` is kept of functions whose integers are counts, factors or dimensions rather than
    sizes and bounds. `given` is the form of its arguments, by position and by name: for an integer
    its number among `integers`, a list for a sequence, a tuple for a slice, None and an ellipsis as
    they are, 'other' for all else. `owner` is the module whose method it stands in, or called the
    function that it stands in; `site` is there where both can be replaced.
    """

    name: str
    integers: list[int]
    floats: list[TaggedFloat] = field(default_factory=list)
    module: str = ""
    ordinal: int = 0
    code: CodeType | None = None
    line: int = 0
    at: int = 0
    owner: str | None = None
    site: Site | None = None
    invocation: Invocation | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def sizes(self) -> list[int]:
        """Those of the integers that can be sizes, or bounds of slices."""
        return [i for i in self.integers if can_size(i)]

    @property
    def place(self) -> str:
        if self.code is None:
            return self.name
        return f"{self.code.co_filename}:{self.line}: {self.name}"


@dataclass(slots=True)
class Node:
    """One ATen operation: `outputs` are value ids (None: not a tensor)."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    multiple: bool
    module: str
    call: Call | None = None
    inputs: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return _packet_name(self.op)


@functools.cache
def _packet_name(op: torch._ops.OpOverload) -> str:
    return str(op.overloadpacket).replace("aten.", "")


@dataclass(slots=True)
class Value:
    """A tensor of the program: its shape and whether it depends on the inputs."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    live: bool


@dataclass(slots=True)
class Run:
    """What runs beside the operations that a program replays, and the ids of its outputs."""

    nodes: list[Node] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def _needed(
    nodes: list[Node], values: set[int], sure: Iterable[int]
) -> tuple[list[Node], list[Node]]:
    """The nodes that make these values or have one of these ids, with what they need; the rest."""
    wanted, chosen, rest = set(sure), [], []
    for node in reversed(nodes):
        if id(node) in wanted or any(out in values for out in node.outputs):
            chosen.append(node)
            values.update(node.inputs)
        else:
            rest.append(node)
    return chosen[::-1], rest[::-1]


_GROUP_NORM = torch.ops.aten.native_group_norm.default

Intercept: TypeAlias = Callable[[list[Any]], list[Any]]
Instead: TypeAlias = Callable[..., Any]


@dataclass
class Program:
    """What one run did: values, nodes, and which values are inputs, tensors of the model, outputs.

    `keywords` names the inputs where they were given by name.
    `tensors` maps a parameter's, buffer's or tensor attribute's path to its value; `constants`
    holds tensors met on the way that belong to neither. `attributes` are the integer attributes of
    the modules and `floats` their floats, and `parameters` gives the shape of every parameter of
    the model, used or not. `aside` is what the code runs besides: operations on which no output
    depends, and a run in training mode where eval mode leaves parameters unused. `looks` says that
    the code looked at a value that depends on the inputs, so that other inputs may take another
    way, `looked` at which, and `swayed` that other weights would change one of them too;
    `on_shapes` says that it ran on shapes alone. `written` holds the floats of unknown origin that
    a piece of code gave to torch functions, and at which instructions.
    `states` holds pairs of values, the state that a cell was given and the one that it made: its
    kernel wants one size. `apart` holds pairs of values whose last sizes a kernel tells apart.
    `whole` holds indexing expressions by whose bounds PyTorch did not slice, with the value, and
    the dimensions along which it did. `compared` holds the comparisons of sizes and attributes.
    """

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    keywords: tuple[str, ...] = ()
    tensors: dict[str, int] = field(default_factory=dict)
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: Any = None
    attributes: dict[Attribute, int] = field(default_factory=dict)
    floats: dict[Attribute, float] = field(default_factory=dict)
    whole: list[tuple[Call, int, list[int]]] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    aside: Run = field(default_factory=Run)
    looks: bool = False
    looked: list[int] = field(default_factory=list)
    swayed: bool = False
    on_shapes: bool = False
    written: dict[tuple[CodeType, float], set[int]] = field(default_factory=dict)
    states: list[tuple[int, int]] = field(default_factory=list)
    apart: list[tuple[int, int]] = field(default_factory=list)

    def output_ids(self) -> list[int]:
        return [leaf.id for leaf in pytree.tree_leaves(self.outputs) if isinstance(leaf, Ref)]

    def roundings(self) -> set[torch.dtype]:
        """The precisions to which an operation rounds what depends on the inputs."""
        out = set()
        for node in self.nodes:
            given = [self.values[i].dtype for i in node.inputs if self.values[i].live]
            finest = min((torch.finfo(d).eps for d in given if d.is_floating_point), default=1.0)
            made = [self.values[i].dtype for i in node.outputs if i is not None]
            out |= {d for d in made if d.is_floating_point and torch.finfo(d).eps > finest}
        return out

    def set_aside(self) -> None:
        """Put what no output depends on aside, if weights take part in it; else it is dropped.

        One that still works in place is kept: what it changes may be seen under another name.
        """
        weighted = set(self.tensors.values()) if self.looked else set()
        for node in self.nodes if weighted else ():
            if not weighted.isdisjoint(node.inputs):
                weighted.update(out for out in node.outputs if out is not None)
        self.swayed |= not weighted.isdisjoint(self.looked)
        live, dead = _needed(
            self.nodes,
            set(self.output_ids()),
            [id(node) for node in self.nodes if node.op._schema.is_mutable],
        )
        weights, reached = set(self.tensors.values()), set[int]()
        weighed = []
        for node in self.nodes:
            outputs = [out for out in node.outputs if out is not None]
            if node.inputs and weights.issuperset(node.inputs):
                weights.update(outputs)
        for node in dead:
            outputs = [out for out in node.outputs if out is not None and self.values[out].live]
            if outputs and any(i in weights or i in reached for i in node.inputs):
                weighed.append(id(node))
                reached.update(outputs)
        self.nodes = live
        self.aside.nodes += _needed(dead, set(), weighed)[0]

    def last_use(self) -> dict[int, list[int]]:
        """Node position -> the values that no later node reads."""
        keep = set(self.output_ids())
        last: dict[int, int] = {}
        for position, node in enumerate(self.nodes):
            for value in (*node.inputs, *(out for out in node.outputs if out is not None)):
                last[value] = position
        out: dict[int, list[int]] = {}
        for value, position in last.items():
            if value not in keep:
                out.setdefault(position, []).append(value)
        return out

    def replay(
        self,
        tensors: Mapping[str, torch.Tensor],
        inputs: Sequence[torch.Tensor],
        intercept: Mapping[int, Intercept] | None = None,
        instead: Mapping[int, Instead] | None = None,
    ) -> Any:
        """Run the program again.

        Args:
            tensors: the model's tensors by path.
            inputs: the input tensors, in the order and with the shapes of the recording.
            intercept: node position -> a function from the node's arguments to new arguments.
            instead: node position -> a function that computes the node's result from its
                arguments.

        Returns:
            What the model returned.

        Raises:
            TraceError: an input has another shape than the recording.
        """
        intercept, instead = intercept or {}, instead or {}
        env: dict[int, torch.Tensor] = dict(self.constants)
        for ident, tensor in zip(self.inputs, inputs, strict=True):
            if tuple(tensor.shape) != self.values[ident].shape:
                raise TraceError(
                    f"the program was recorded for an input of shape {self.values[ident].shape} "
                    f"and cannot replay one of shape {tuple(tensor.shape)}; trace it again"
                )
            env[ident] = tensor
        env.update((ident, tensors[name]) for name, ident in self.tensors.items())
        dying = self.last_use()
        for position, node in enumerate(self.nodes):
            args = [fill(arg, env) for arg in node.args]
            if position in intercept:
                args = intercept[position](args)
            if node.op is _GROUP_NORM:  # what was contiguous when recorded may not be now
                args[0] = args[0].contiguous()
            kwargs = {k: fill(v, env) for k, v in node.kwargs.items()} if node.kwargs else {}
            run = instead.get(position, node.op)
            result = run(*args, **kwargs)
            results = result if node.multiple else (result,)
            env.update(
                (out, tensor)
                for out, tensor in zip(node.outputs, results, strict=True)
                if out is not None
            )
            for dead in dying.get(position, ()):
                env.pop(dead, None)
        return pytree.tree_map_only(Ref, lambda ref: env[ref.id], self.outputs)


def fill(arg: Any, env: Mapping[int, torch.Tensor]) -> Any:
    """An argument with its references replaced by tensors."""
    if isinstance(arg, Ref):
        return env[arg.id]
    if isinstance(arg, list):
        return [fill(item, env) for item in arg]
    return arg
