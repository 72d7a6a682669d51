"""Where the constant that a unit emits can go: into a vector that its reader adds anyway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..groups import Graph
from ..trace.analyse import Read
from ..trace.labels import Axis, Bools, axis_size
from ..trace.program import Node, Ref
from ..trace.rules import op_name
from .influence import BATCH_NORMS, CONVOLUTIONS, RESHAPES, Influence

Reasons: TypeAlias = dict[int, str]

_REARRANGES = frozenset("permute transpose t numpy_T expand".split())


@dataclass(frozen=True)
class _Vector:
    """A tensor of the model that node `position` adds, and what must be added to it."""

    tensor: int
    position: int
    shift: Tensor


class _UnfitError(Exception):
    """A contribution that no vector of the model can take; the message says why."""


@dataclass
class Folder:
    """Finds what must be added to which vectors so that units that emit constants can go.

    Args:
        graph: the trace.
        influence: what varies and what is needed in it.
    """

    graph: Graph
    influence: Influence
    _users: dict[int, list[int]] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _reads: dict[int, list[Read]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = self.graph.program
        for position, node in enumerate(program.nodes):
            for ident in dict.fromkeys(node.inputs):
                self._users.setdefault(ident, []).append(position)
        self._names = {ident: name for name, ident in reversed(program.tensors.items())}
        for read in self.graph.analysis.reads:
            if read.position in self.influence.operands:
                self._reads.setdefault(read.position, []).append(read)

    @torch.no_grad()
    def fold(self, gone: Bools) -> tuple[dict[str, Tensor], Reasons]:
        """What to add to the model's vectors when these units go, and which cannot go, and why.

        Args:
            gone: (units,), which go.

        Returns:
            Tensor path -> what is added to it, before anything is cut; and unit -> the reason
            why it must stay, in which case the first is not to be used.
        """
        found: dict[int, list[_Vector]] = {}
        givers: dict[int, list[int]] = {}
        stuck: Reasons = {}
        for position, reads in self._reads.items():
            try:
                vector = self._vector(position, reads, gone, gone)
            except _UnfitError as error:
                stuck |= self._culprits(position, reads, gone, str(error))
                continue
            if vector is not None:
                found.setdefault(vector.tensor, []).append(vector)
                givers.setdefault(vector.tensor, []).append(position)
        shifts = {}
        for tensor, vectors in found.items():
            if self._agree(tensor, vectors):
                shifts[self._names[tensor]] = vectors[0].shift
                continue
            why = f"{self._names[tensor]} is used in several places that would need other values"
            for position in givers[tensor]:
                units = self._contributing(position, self._reads[position], gone)
                stuck |= dict.fromkeys(units, why)
        return shifts, stuck

    def _culprits(self, position: int, reads: list[Read], gone: Bools, why: str) -> Reasons:
        """The units whose contribution by itself fits nowhere; all if each fits alone."""
        units = self._contributing(position, reads, gone)
        out: Reasons = {}
        for unit in units:
            alone = np.zeros_like(gone)
            alone[unit] = True
            try:
                self._vector(position, reads, alone, gone)
            except _UnfitError as error:
                out[unit] = str(error)
        return out or dict.fromkeys(units, why)

    # ------------------------------------------------------------------ one reader
    def _constants(self, position: int, reads: list[Read], units: Bools) -> Tensor:
        """What a reader's operand holds of these units where it is constant, else zeros."""
        operand: Tensor = self.influence.operands[position][reads[0].arg]
        mask = torch.zeros_like(operand, dtype=torch.bool)
        for read in reads:
            lines = torch.from_numpy(along(self.graph, read.axis, units)).to(operand.device)
            mask |= lines.reshape([-1 if d == read.dim else 1 for d in range(operand.dim())])
        varying = self.influence.varying.get(reads[0].value)
        if varying is not None:
            mask &= ~varying
        return operand.where(mask, 0)

    def _contributing(self, position: int, reads: list[Read], gone: Bools) -> list[int]:
        """Those of these units that are something other than zero at a reader."""
        constants = self._constants(position, reads, gone) != 0
        out: set[int] = set()
        for read in reads:
            lines = constants.movedim(read.dim, 0).flatten(1).any(1).cpu().numpy()
            at, units = self.graph.axis_incidence(read.axis)
            out.update(units[lines[at] & gone[units]].tolist())
        return sorted(out)

    def _vector(
        self, position: int, reads: list[Read], units: Bools, gone: Bools
    ) -> _Vector | None:
        """What a reader makes of the constants of these units, as a shift of a vector.

        None if it makes nothing of them that matters.

        Raises:
            _UnfitError: no vector can take it.
        """
        node = self.graph.program.nodes[position]
        constants = self._constants(position, reads, units)
        if not bool(constants.any()):
            return None
        at, args = reads[0].arg, [_double(arg) for arg in self.influence.operands[position]]
        kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        with_them = node.op(*args[:at], _double(constants), *args[at + 1 :], **kwargs)
        without = node.op(*args[:at], torch.zeros_like(args[at]), *args[at + 1 :], **kwargs)
        shift = with_them - without
        noise = 1e-14 * float(without.abs().max()) + 8 * _eps(constants) * float(shift.abs().max())
        value = node.outputs[0] or 0
        matters = self.influence.is_needed(value, shift)
        for dim, axis in enumerate(self.graph.analysis.axes[value]):
            lines = torch.from_numpy(~along(self.graph, axis, gone)).to(shift.device)
            matters = matters & lines.reshape([-1 if d == dim else 1 for d in range(shift.dim())])
        if float(shift.abs().masked_fill(~matters, 0).max()) <= 1e-14 * float(without.abs().max()):
            return None
        return self._absorb(position, value, shift, matters, noise)

    def _absorb(
        self, position: int, value: int, shift: Tensor, matters: Tensor, noise: float
    ) -> _Vector:
        """The first vector on the way from a reader that can take a shift of what it gives."""
        nodes = self.graph.program.nodes
        reader = node = nodes[position]
        outputs = self.graph.program.output_ids()
        own = {**dict.fromkeys(CONVOLUTIONS, 2), "addmm": 0, "baddbmm": 0}.get(op_name(node.op))
        if own is not None and self._is_tensor(node.args[own]) and not node.kwargs:
            dim = 1 if own else None
            return self._shifted(node.args[own].id, position, shift, matters, noise, dim)
        while True:
            users = self._users.get(value, [])
            if len(users) != 1 or value in outputs:
                break
            position, node = users[0], nodes[users[0]]
            name = op_name(node.op)
            if name in BATCH_NORMS and self._is_tensor(node.args[3]):
                mean: int = node.args[3].id  # none in training mode: what varies is not constant
                return self._shifted(mean, position, -shift, matters, noise, 1)
            if name == "add" and not node.kwargs:
                other = node.args[1] if node.args[0] == Ref(value) else node.args[0]
                if self._is_tensor(other):
                    return self._shifted(other.id, position, shift, matters, noise, None)
            if name not in RESHAPES and name not in _REARRANGES:
                break
            shift, matters = self._moved(node, shift), self._moved(node, matters)
            value = node.outputs[0] or 0
        raise _UnfitError(f"{place(reader)} has no bias that could take what it emits")

    def _moved(self, node: Node, tensor: Tensor) -> Tensor:
        if op_name(node.op) in RESHAPES:
            return tensor.reshape(self.graph.program.values[node.outputs[0] or 0].shape)
        made: Tensor = node.op(tensor, *node.args[1:], **node.kwargs)
        return made

    def _is_tensor(self, arg: Any) -> bool:
        return isinstance(arg, Ref) and arg.id in self._names

    def _shifted(
        self, tensor: int, position: int, shift: Tensor, matters: Tensor, noise: float,
        dim: int | None,
    ) -> _Vector:  # fmt: skip
        """A shift that is the same wherever a vector is added, as a shift of the vector.

        Raises:
            _UnfitError: it differs from place to place.
        """
        shape = self.graph.program.values[tensor].shape
        aligned = [1] * (shift.dim() - len(shape)) + list(shape)
        if dim is not None:
            aligned = [shape[0] if d == dim else 1 for d in range(shift.dim())]
        dims = [d for d, n in enumerate(aligned) if n == 1]
        low = shift.masked_fill(~matters, float("inf"))
        high = shift.masked_fill(~matters, -float("inf"))
        if dims:
            low, high = low.amin(dims), high.amax(dims)
        heard = high >= low
        if bool((high - low)[heard].gt(noise).any()):
            where = place(self.graph.program.nodes[position])
            raise _UnfitError(
                f"{where} gets another sum of it at the edge than inside (zero padding), which a "
                "bias cannot make up for"
            )
        return _Vector(tensor, position, torch.where(heard, low, 0).reshape(shape))

    def _agree(self, tensor: int, vectors: list[_Vector]) -> bool:
        """Whether every use of a vector asks for the same shift of it."""
        if {v.position for v in vectors} != set(self._users[tensor]):
            return False
        shifts = torch.stack([v.shift for v in vectors])
        return bool((shifts - shifts[0]).abs().max() <= 1e-12 * (1 + shifts.abs().max()))


def along(graph: Graph, axis: Axis, units: Bools) -> Bools:
    """Which indices of an axis go with one of these units, (size,)."""
    at, theirs = graph.axis_incidence(axis)
    out = np.zeros(axis_size(axis), dtype=bool)
    out[at[units[theirs]]] = True
    return out


def place(node: Node) -> str:
    """What a person calls an operation: 'conv2' or 'a mul of blocks.0'."""
    return node.module or f"aten.{op_name(node.op)}"


def _double(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps
