"""The uncut network, run forward once, holding only what later groups need."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor

from ..blocks import Block
from .cone import Cone
from .recording import Recording


class Walk:
    """Values of the uncut network on n examples, computed as far as they are asked for.

    Args:
        recording: of the model.
        inputs: the values of its inputs, and others that are known.
        n: how many examples they hold.
        cones: of the groups, in the order in which `reach` will be called.
    """

    def __init__(
        self, recording: Recording, inputs: dict[int, Tensor], n: int, cones: Sequence[Cone]
    ):
        self._recording, self._n, self._cones = recording, n, cones
        self._static = recording.static(n)
        self._position = 0
        self._until = lifetimes(recording, cones)
        self.values = self._static | inputs

    def reach(self, index: int) -> dict[int, Tensor]:
        """What the group at this index needs; what only earlier ones needed is let go."""
        needs = self._cones[index].needs
        while needs - self.values.keys():
            self._step(index)
        self._forget(index)
        return self.values

    def _step(self, index: int) -> None:
        position, recording = self._position, self._recording
        node = recording.nodes[position]
        self._position += 1
        if any(out is not None and out not in self._static for out in node.outputs):
            self.values.update(recording.run(position, self.values, self._n))
            self._forget(index)

    def _forget(self, index: int) -> None:
        for value in list(self.values):
            if value not in self._static:
                node, group = self._until.get(value, (-1, -1))
                if node < self._position and group < index:
                    del self.values[value]


def lifetimes(recording: Recording, cones: Sequence[Cone]) -> dict[int, tuple[int, int]]:
    """Value -> the last node that takes it, and the last group that needs it."""
    until: dict[int, tuple[int, int]] = {}
    for position, node in enumerate(recording.nodes):
        for value in node.inputs:
            until[value] = (position, -1)
    for index, cone in enumerate(cones):
        for value in cone.needs:
            until[value] = (until.get(value, (-1, -1))[0], index)
    return until


def held_per_example(recording: Recording, cones: Sequence[Cone]) -> float:
    """The most bytes that a walk holds at once for each example."""
    until, most, position = lifetimes(recording, cones), 0.0, 0
    held = dict.fromkeys(recording.graph.program.inputs, 0.0)
    values = recording.graph.program.values
    for index, cone in enumerate(cones):
        while cone.needs - held.keys() and position < len(recording.nodes):
            node = recording.nodes[position]
            own = [out for out in node.outputs if out is not None and values[out].live]
            held |= {out: recording.bytes_per_example(out) for out in own}
            most = max(most, sum(held.values()) + 2 * sum(held[out] for out in own))
            position += 1
            held = {
                v: size
                for v, size in held.items()
                if until.get(v, (-1, -1))[0] >= position or until.get(v, (-1, -1))[1] >= index
            }
    return most


def first_pass(
    recording: Recording,
    inputs: dict[int, Tensor],
    n: int,
    cones: Sequence[Cone],
    keep: Set[int] = frozenset(),
) -> tuple[dict[int, Tensor], list[Tensor], dict[int, Tensor]]:
    """The outputs of the uncut network, and where the units of each group speak at all.

    A unit is silent in an example where all that any reader reads of it is zero: then its gate
    multiplies zeros, and nothing changes.

    Returns:
        value -> output; for each cone (examples, units), bool; the values to `keep`.
    """
    program = recording.graph.program
    env = recording.static(n)
    still = set(env)
    env |= inputs
    loud = [_unheard(cone, n) for cone in cones]
    dying = program.last_use()
    for position, node in enumerate(recording.nodes):
        for cone, seen in zip(cones, loud, strict=True):
            for cut in () if isinstance(cone.group, Block) else cone.cuts.get(position, ()):
                _listen(recording, cut.value, cut.dim, cut.indices, env, seen)
        if any(out is not None and out not in still for out in node.outputs):
            env.update(recording.run(position, env, n))
        for value in dying.get(position, ()):
            if value not in still and value not in keep:
                env.pop(value, None)
    outputs = {ident: env[ident] for ident in program.output_ids()}
    return outputs, loud, {value: env[value] for value in keep}


def _unheard(cone: Cone, n: int) -> Tensor:
    """Before anything is heard: no unit speaks, but blocks, whose tensors cost more to look at."""
    return torch.full((n, cone.group.size), isinstance(cone.group, Block))


def _listen(
    recording: Recording,
    value: int,
    dim: int,
    indices: Sequence[Tensor],
    env: dict[int, Tensor],
    seen: Tensor,
) -> None:
    """Note the examples in which the units of a read are not all zero."""
    layout = (recording.layouts or {}).get(value)
    if layout is None or layout.dim == dim:
        seen |= True
        return
    x = layout.split(env[value])
    batch, axis = layout.dim + 1, dim if dim < layout.dim else dim + 2
    flat = x.movedim((batch, axis), (0, 1))
    speaks = (flat != 0).flatten(2).any(-1) if flat.dim() > 2 else flat != 0
    speaks = speaks.cpu()
    if all(len(i) == 1 for i in indices):
        seen |= speaks[:, torch.cat(list(indices))]
        return
    for unit, own in enumerate(indices):
        seen[:, unit] |= speaks[:, own].any(1)
