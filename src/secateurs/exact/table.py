"""The changes of one group on one batch, as rows or whole batches come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import NotFiniteError
from .judge import Judge
from .recording import Layout, Recording, Rows, tensors_in
from .rows import Chunk


@dataclass(frozen=True)
class Change:
    """What the units of one group change on one batch.

    Attributes:
        loss: C_n(g_i = 0) − C_n(1), (examples, units) float64; (1, units) where the loss is one
            number for the batch.
        metric: the same in the metric; None without one.
        how: how it was computed: 'rows', 'units' (whole batches, from the group's readers on),
            'forwards'.
        why: why not by rows; empty if it was.
        base: 'loss' and 'metric' -> those of the uncut network, (examples,) or (1,) float64.
    """

    loss: Tensor
    metric: Tensor | None
    how: str
    why: str = ""
    base: dict[str, Tensor] = field(default_factory=dict)


class Table:
    """The changes of a group's units on one batch, as they come in."""

    def __init__(self, group: str, judges: list[Judge], size: int, wanted: Sequence[int]):
        self._group, self._judges, self._wanted = group, judges, list(wanted)
        self._made = []
        for judge in judges:
            made = torch.full((len(judge.base), size), torch.nan, dtype=torch.float64)
            made[:, self._wanted] = 0.0  # a silent unit changes nothing
            self._made.append(made)

    @property
    def rowwise(self) -> bool:
        return all(judge.rowwise for judge in self._judges)

    def rows(self, output: Any, chunk: Chunk) -> None:
        """What the rows of a chunk give."""
        examples = chunk.examples
        for judge, made in zip(self._judges, self._made, strict=True):
            change = judge.rows(output, examples)
            if len(chunk.segments) == 1 and isinstance(examples, slice):
                made[examples, chunk.segments[0].unit] = change
            elif isinstance(examples, Tensor):
                made[examples, chunk.units] = change

    def whole(self, output: Any, unit: int) -> None:
        """What the whole batch gives without a unit."""
        for judge, made in zip(self._judges, self._made, strict=True):
            made[:, unit] = judge.whole(output) - judge.base

    def change(self, how: str, why: str) -> Change:
        """All of it, checked."""
        for made in self._made:
            if not bool(torch.isfinite(made[:, self._wanted]).all()):
                bad = (~torch.isfinite(made[:, self._wanted])).any(0).nonzero()[0].item()
                raise NotFiniteError(
                    f"the loss or metric is not finite (NaN or infinite) without unit "
                    f"{self._wanted[int(bad)]} of group {self._group!r}"
                )
        loss, *metric = self._made
        base = {judge.what: judge.base for judge in self._judges}
        return Change(loss, metric[0] if metric else None, how, why, base)


class Whole:
    """Puts the rows of each unit together into the output of the whole batch."""

    def __init__(
        self, recording: Recording, table: Table, outputs: dict[int, Tensor], loud: Tensor
    ):
        self._recording, self._table, self._base = recording, table, outputs
        self._due = loud.sum(0).tolist()
        self._open: dict[int, dict[int, Tensor]] = {}

    def take(self, tree: Any, chunk: Chunk) -> None:
        """Rows of some units; a unit that is complete is judged, and let go."""
        layouts = self._recording.layouts or {}
        refs = self._recording.graph.program.output_ids()
        rows = dict(zip(refs, tensors_in(tree), strict=True))
        for segment in chunk.segments:
            made = self._open.setdefault(
                segment.unit, {i: t.clone() for i, t in self._base.items()}
            )
            for ident, whole in made.items():
                layout = layouts.get(ident)
                if layout is not None:
                    part = layout.pick(rows[ident], slice(segment.start, segment.stop))
                    made[ident] = _put(layout, whole, segment.examples, part)
            self._due[segment.unit] -= segment.stop - segment.start
            if not self._due[segment.unit]:
                self._table.whole(
                    self._recording.outputs(self._open.pop(segment.unit)), segment.unit
                )


def _put(layout: Layout, whole: Tensor, examples: Rows, part: Tensor) -> Tensor:
    """The whole with the part at some of its examples."""
    split, piece = layout.split(whole), layout.split(part)
    rows = torch.arange(examples.start, examples.stop) if isinstance(examples, slice) else examples
    return split.index_copy(layout.dim + 1, rows.to(whole.device), piece).reshape(whole.shape)
