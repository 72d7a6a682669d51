"""The operations that only recurrent nets use; their cells are made of everyday ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .labels import frozen_axis
from .program import Node
from .rules import Axes, rule

if TYPE_CHECKING:
    from .analyse import Analysis

_PACKED = "steps of a packed sequence"


@rule("_pack_padded_sequence")
def _pack(analysis: Analysis, node: Node) -> list[Axes]:
    """(sequences, steps, features) -> (steps of all sequences, features), and how many run."""
    axes = analysis.axes[node.args[0].id]
    for axis in axes[:2]:
        analysis.labels.freeze(axis, _PACKED)
    analysis.freeze_value(node.args[1].id, "lengths of sequences")
    steps, sizes = (analysis.program.values[out or 0].shape for out in node.outputs)
    packed = [frozen_axis(steps[0], _PACKED, batch=True), *axes[2:]]
    return [packed, [frozen_axis(sizes[0], _PACKED)]]
