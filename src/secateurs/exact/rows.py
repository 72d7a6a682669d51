"""Rows of units and examples that share a batch, and the replay of what they change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cone import Cone, Cut
from .reader import weight_of
from .recording import Recording, Rows


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a chunk: one unit, in these examples of the batch."""

    unit: int
    start: int
    stop: int
    examples: Rows


@dataclass(frozen=True)
class Chunk:
    """Rows that are replayed together, unit after unit."""

    segments: tuple[Segment, ...]

    @property
    def count(self) -> int:
        return self.segments[-1].stop

    @property
    def examples(self) -> Rows:
        """The example of each row: a run of the batch if it is one."""
        if len(self.segments) == 1:
            return self.segments[0].examples
        return torch.cat([_indices(segment.examples) for segment in self.segments])

    @property
    def units(self) -> Tensor:
        """The unit of each row."""
        units = torch.tensor([segment.unit for segment in self.segments])
        counts = torch.tensor([segment.stop - segment.start for segment in self.segments])
        return units.repeat_interleave(counts)


def _indices(rows: Rows) -> Tensor:
    return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def chunks_of(loud: Tensor, units: Sequence[int], limit: int) -> Iterator[Chunk]:
    """Every row that is not silent, in chunks of at most `limit`.

    Args:
        loud: (examples, units), where a unit is not silent.
        units: those that are asked for.
        limit: rows.
    """
    waiting: list[Segment] = []
    filled = 0
    everywhere = loud.all(0).tolist()
    for unit in units:
        found = None if everywhere[unit] else loud[:, unit].nonzero()[:, 0]
        count = len(loud) if found is None else len(found)
        parts = -(-count // limit)
        for part in range(parts):
            first, last = part * count // parts, (part + 1) * count // parts
            if filled + last - first > limit:
                yield Chunk(tuple(waiting))
                waiting, filled = [], 0
            rows = slice(first, last) if found is None else found[first:last]
            waiting.append(Segment(unit, filled, filled + last - first, rows))
            filled += last - first
    if waiting:
        yield Chunk(tuple(waiting))


class _Picked(dict[int, Tensor]):
    """The values of a chunk; what is not changed is picked from the batch when asked for."""

    def __init__(
        self,
        recording: Recording,
        values: Mapping[int, Tensor],
        static: dict[int, Tensor],
        rows: Rows,
    ):
        super().__init__(static)
        self._layouts, self._values, self._rows = recording.layouts or {}, values, rows

    def __missing__(self, value: int) -> Tensor:
        layout, base = self._layouts.get(value), self._values[value]
        rows = self._rows if isinstance(self._rows, slice) else self._rows.to(base.device)
        self[value] = base if layout is None else layout.pick(base, rows)
        return self[value]


def replay(
    recording: Recording,
    cone: Cone,
    values: Mapping[int, Tensor],
    static: dict[int, Tensor],
    chunk: Chunk,
) -> Any:
    """What the model returns for each row of a chunk.

    Args:
        recording: one that runs on any number of examples.
        cone: of the group whose units the rows gate.
        values: what the cone needs, of the uncut network on the whole batch.
        static: what does not depend on the inputs, for `chunk.count` examples.
        chunk: the rows.
    """
    env = _Picked(recording, values, static, chunk.examples)
    for position in cone.nodes:
        node = recording.node(position)
        if position in cone.updates:
            env[_first(node.outputs)] = _update(recording, cone, position, values, static, chunk)
        else:
            cuts = cone.cuts.get(position, ())

            def gated(args: list[Any], cuts: Sequence[Cut] = cuts) -> list[Any]:
                for cut in cuts:
                    args[cut.arg] = mask(recording, args[cut.arg], cut, chunk)
                return args

            env.update(recording.run(position, env, chunk.count, gated if cuts else None))
        for value in cone.dying.get(position, ()):
            env.pop(value, None)
    return recording.outputs(env)


def _first(outputs: tuple[int | None, ...]) -> int:
    return next(out for out in outputs if out is not None)


def _update(
    recording: Recording,
    cone: Cone,
    position: int,
    values: Mapping[int, Tensor],
    static: dict[int, Tensor],
    chunk: Chunk,
) -> Tensor:
    """A reader's result for each row: the uncut one less the part of the row's unit."""
    out = _first(recording.nodes[position].outputs)
    z, x = values[out], values[cone.cuts[position][0].value]
    weight, inner = static[weight_of(recording, position)], (recording.layouts or {})[out].inner
    made = z.new_empty(chunk.count * inner, *z.shape[1:])
    for segment in chunk.segments:
        into = made[segment.start * inner : segment.stop * inner]
        rows = segment.examples
        rows = rows if isinstance(rows, slice) else rows.to(z.device)
        if len(cone.cuts[position][0].indices[segment.unit]):
            cone.updates[position](into, z, x, weight, segment.unit, rows)
        else:  # this reader takes other units of the group only
            into.copy_((recording.layouts or {})[out].pick(z, rows))
    return made


def mask(recording: Recording, operand: Tensor, cut: Cut, chunk: Chunk) -> Tensor:
    """The operand with, in each row, zeros where its unit is read."""
    if len(cut.indices) == 1 and len(cut.indices[0]) == operand.shape[cut.dim]:
        return torch.zeros_like(operand)  # the only unit is all there is
    layout = (recording.layouts or {})[cut.value]
    made = operand.clone()
    rows = layout.split(made)
    dim = cut.dim if cut.dim < layout.dim else cut.dim + 2
    for segment in chunk.segments:
        part = rows.narrow(layout.dim + 1, segment.start, segment.stop - segment.start)
        part.index_fill_(dim, cut.indices[segment.unit].to(operand.device), 0)
    return made if rows.data_ptr() == made.data_ptr() else rows.reshape(operand.shape)
