"""Fold a factor into the weights that make a value.

Code may compute a number from a size and multiply with it: attention divides by √d, and a fused
kernel does so by itself. When d is cut, the number changes, and with it the function. The change
is undone where the value is made: in the rows of the projection, or the scale of the norm, from
which it follows by linear operations alone. If anything else reads those rows, it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch

from ..errors import MendError
from ..trace.analyse import Analysis
from ..trace.attention import operands
from ..trace.program import Node, Ref, fill
from ..trace.rules import is_linear, is_pointwise, op_name
from ..trace.tagged import Size, Source, TaggedFloat, TaggedInt, leaves_of

_MOVES = frozenset(
    "view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten permute transpose t "
    "numpy_T expand slice split split_with_sizes unsafe_split unsafe_split_with_sizes select "
    "unbind alias clone contiguous detach _to_copy".split()
)
_JOINS = frozenset({"cat", "stack"})
_WEIGHS = {"mm": (None, 0, 1), "bmm": (None, 0, 1), "addmm": (0, 1, 2)}  # bias, input, weight
_NORMS = frozenset("native_layer_norm layer_norm _fused_rms_norm rms_norm".split())


Step: TypeAlias = tuple[Node, int]  # a movement, and which of its outputs goes on


class Computed(NamedTuple):
    """A node multiplies by a number that was computed from sizes, or divides by it (power -1)."""

    position: int
    number: float
    source: Source
    power: int


class Place(NamedTuple):
    """Indices of one axis of a tensor of the model, and the factor that multiplies them."""

    tensor: str
    dim: int
    indices: list[int]


@dataclass(frozen=True)
class Scale:
    """Indices `indices` of dimension `dim` of a tensor, before the cut, times `factor`."""

    tensor: str
    dim: int
    indices: list[int]
    factor: float

    def to_list(self) -> list[Any]:
        return [self.tensor, self.dim, self.indices, self.factor]


def computed_factors(analysis: Analysis) -> list[Computed]:
    """Every number that the code computed from a size and multiplied a live tensor with."""
    out: list[Computed] = []
    attended: set[int] = set()
    values = analysis.program.values
    for position, node in enumerate(analysis.program.nodes):
        call = node.call
        if call is None or not any(values[ident].live for ident in node.inputs):
            continue
        name = op_name(node.op)
        if call.name == "scaled_dot_product_attention":
            sized = call.floats and any(leaves_of(call.floats[0].source))
            if name == "bmm" and sized and id(call) not in attended:
                attended.add(id(call))
                out.append(Computed(position, call.floats[0], call.floats[0].source, 1))
        elif name in ("mul", "div"):
            tagged: list[TaggedInt | TaggedFloat] = [
                *(f for f in call.floats if any(leaves_of(f.source))),
                *(i for i in call.integers if isinstance(i, TaggedInt)),
            ]
            given = [a for a in node.args[1:2] if isinstance(a, (int, float))]
            found = next((n for n in tagged if n in given and _known(analysis, n.source)), None)
            if found is not None:
                out.append(Computed(position, found, found.source, 1 if name == "mul" else -1))
    return out


def _known(analysis: Analysis, source: Source) -> bool:
    """Whether no size in it is of a tensor that was looked at for its shape alone."""
    sizes = (leaf for leaf in leaves_of(source) if isinstance(leaf, Size))
    return all(size.value in analysis.axes for size in sizes)


class Folder:
    """Finds where a factor on a node's first operand can be folded in."""

    def __init__(self, analysis: Analysis):
        self.analysis, self.program = analysis, analysis.program
        self.makers: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        for position, node in enumerate(self.program.nodes):
            self.makers.update((v, position) for v in node.outputs if v is not None)
            for value in set(node.inputs):
                self.readers.setdefault(value, []).append(position)
        self.names = {ident: name for name, ident in self.program.tensors.items()}
        self._known: dict[int, list[Place] | str] = {}

    def places(self, position: int) -> list[Place]:
        """The parameters to scale so that what the node at this position multiplies is scaled.

        Raises:
            MendError: there are none, or something else reads them.
        """
        if position not in self._known:
            node, errors = self.program.nodes[position], []
            sides = operands(node) if op_name(node.op) == "bmm" else node.inputs[:1]
            for value in sides:
                try:
                    self._known[position] = _Region(self, value, position).places
                    break
                except MendError as error:
                    errors.append(str(error))
            else:
                self._known[position] = errors[0]
        known = self._known[position]
        if isinstance(known, str):
            raise MendError(known)
        return known


class _Region:
    """The values that are scaled with one value, back to the parameters that make them."""

    def __init__(self, folder: Folder, value: int, reader: int):
        self.folder, self.program = folder, folder.program
        self.reader, self.inside = reader, {reader}
        self.made: list[tuple[int, int]] = []  # (value, weight or bias that makes its columns)
        self.whole: list[int] = []  # parameters that are scaled as they are
        self.seen: set[int] = set()
        self._back(value)
        self.places = [place for made in self.made for place in self._rows(*made)]
        self.places += [self._all(value) for value in self.whole]

    def _refuse(self, node: Node | None) -> MendError:
        where = "a tensor of the network" if node is None else node.name
        module = f" in {node.module}" if node is not None and node.module else ""
        return MendError(
            f"a number that the code computes from this size multiplies the result of {where}"
            f"{module}, into which the change cannot be folded"
        )

    def _live(self, value: int) -> bool:
        return self.program.values[value].live

    def _back(self, value: int) -> None:
        """Walk from a scaled value to what makes it."""
        if value in self.seen:
            return
        self.seen.add(value)
        position = self.folder.makers.get(value)
        if position is None or not self._live(value):
            self.whole.append(value)
            return
        node = self.program.nodes[position]
        name = op_name(node.op)
        self.inside.add(position)
        if name in _MOVES:
            self._back(node.inputs[0])
        elif name == "bmm" and all(self._live(v) for v in operands(node)):
            self._back(operands(node)[0])
        elif name in _WEIGHS:
            self._weighs(node, value)
            return
        elif name in _NORMS:
            for ref in node.args[2:4]:
                if isinstance(ref, Ref):
                    self.whole.append(ref.id)
            if not isinstance(node.args[2], Ref):
                raise self._refuse(node)
        elif name in _JOINS or is_pointwise(node.op):
            self._pointwise(node, name)
        else:
            raise self._refuse(node)
        if name not in _MOVES:
            self._nobody_else(value, node)

    def _weighs(self, node: Node, value: int) -> None:
        bias, x, weight = _WEIGHS[op_name(node.op)]
        held = node.args[weight].id
        if self._live(held) or not self._live(node.args[x].id):
            raise self._refuse(node)
        self.made.append((value, held))
        if bias is not None:
            self.made.append((value, node.args[bias].id))

    def _pointwise(self, node: Node, name: str) -> None:
        live = [self._live(v) for v in node.inputs]
        scales = [v for v in node.inputs if not self._live(v) and self._is_parameter(v)]
        if name == "mul" and len(scales) == 1:
            self.whole.append(scales[0])
        elif not is_linear(node.op, live) and name not in _JOINS:
            raise self._refuse(node)
        elif name in ("add", "sub", *_JOINS):
            for value in node.inputs:
                if not self._live(value) and name not in _JOINS:
                    self.made += [(out, value) for out in node.outputs if out is not None]
                else:
                    self._back(value)
        else:
            self._back(next(v for v in node.inputs if self._live(v)))

    def _is_parameter(self, value: int) -> bool:
        return self._source(value)[1] in self.program.parameters

    def _nobody_else(self, value: int, node: Node | None) -> None:
        readers = self.folder.readers.get(value, ())
        if not self.inside.issuperset(readers) or value in self.program.output_ids():
            raise self._refuse(node)

    # ------------------------------------------------------------------ parameters
    def _source(self, value: int) -> tuple[list[Step], str]:
        """The movements that lead from a tensor of the model to a value, and its path."""
        chain: list[Step] = []
        while value in self.folder.makers:
            node = self.program.nodes[self.folder.makers[value]]
            if op_name(node.op) not in _MOVES:
                return [], ""
            chain.append((node, node.outputs.index(value)))
            value = node.inputs[0]
        return chain[::-1], self.folder.names.get(value, "")

    def _exclusive(self, value: int) -> tuple[list[Step], str]:
        """The same, of a parameter that nothing else reads."""
        chain, name = self._source(value)
        node = self.program.nodes[self.folder.makers[value]] if chain else None
        if name not in self.program.parameters:
            raise self._refuse(node)
        moved = (self.program.tensors[name], *(v for n, _ in chain for v in n.outputs))
        if any(len(self.folder.readers.get(v, ())) > 1 for v in moved if v is not None):
            raise self._refuse(node)
        return chain, name

    def _all(self, value: int) -> Place:
        _, name = self._exclusive(value)
        size = self.program.parameters[name][0] if self.program.parameters[name] else 0
        if not size:
            raise self._refuse(None)
        return Place(name, 0, list(range(size)))

    def _rows(self, made: int, held: int) -> Iterator[Place]:
        """The indices of a weight that write what of its product lies in the region."""
        chain, name = self._exclusive(held)
        mine, others = self._used(made)
        if bool((mine & others).any()):
            raise self._refuse(self.program.nodes[self.folder.makers[made]])
        shape = self.program.parameters[name]
        for d, size in enumerate(shape):
            along = torch.arange(size).reshape([-1 if e == d else 1 for e in range(len(shape))])
            moved = along.expand(shape)
            for node, out in chain:
                moved = _moved(node, moved)[out]
            lines = _distinct(moved, but=moved.dim() - 1).reshape(-1, moved.shape[-1]).T
            rows, spared = (_marked(lines[chosen], size) for chosen in (mine, ~mine))
            if not bool((rows & spared).any()):
                yield Place(name, d, rows.nonzero()[:, 0].tolist())
                return
        raise self._refuse(self.program.nodes[self.folder.makers[made]])

    def _used(self, value: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns of a product the region reads, and which others do, as masks."""
        shape = self.program.values[value].shape
        mine, others = torch.zeros(2, shape[-1], dtype=torch.bool)
        todo = [(value, torch.arange(shape[-1]).expand(shape))]
        while todo:
            value, columns = todo.pop()
            for position in self.folder.readers.get(value, ()):
                node = self.program.nodes[position]
                inside = position in self.inside and value in self.seen  # k is not, where q is
                if op_name(node.op) in _MOVES:
                    moved = zip(node.outputs, _moved(node, columns), strict=True)
                    todo += [(v, c) for v, c in moved if v is not None]
                elif inside and position != self.reader and is_pointwise(node.op):
                    (out,) = node.outputs  # it may go on with more than the region is made of
                    shape = self.program.values[out or 0].shape
                    todo.append((out or 0, columns.broadcast_to(shape)))
                else:
                    used = mine if inside else others
                    used |= _marked(columns, len(used))
        return mine, others


def _distinct(tensor: torch.Tensor, but: int = -1) -> torch.Tensor:
    """A tensor without its repetitions along dimensions in which it does not move in memory."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and dim != but:
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor


def _marked(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """(size,): which numbers there are."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[_distinct(numbers).flatten()] = True
    return mask


def _moved(node: Node, tensor: torch.Tensor) -> list[torch.Tensor]:
    """What a movement makes of another tensor."""
    if op_name(node.op) in ("alias", "clone", "contiguous", "detach", "_to_copy"):
        return [tensor]
    args = [fill(arg, {node.inputs[0]: tensor}) for arg in node.args]
    if op_name(node.op) in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        return [tensor.reshape(args[1])]
    result = node.op(*args, **node.kwargs)
    return list(result) if node.multiple else [result]
