"""What a cut changes in layers that are built anew from their configuration, as in Keras.

Their code computes its sizes anew. What is left to say is which attributes state a size by
themselves (the target of a reshape), and what makes up for the 1/√d that an attention takes from
its configuration: it would become another number, and is folded into what makes the queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..trace.analyse import Analysis
from ..trace.attention import attentions, operands
from ..trace.labels import axis_size
from ..trace.sizes import Cut
from .describe import Axes
from .fold import Folder, Scale
from .given import sized_nodes
from .mend import Mended, demands


def configure(analysis: Analysis, cut: Cut, axes: Axes) -> Mended:
    """What a cut changes beside the tensors; the arguments are those of `mend`.

    Raises:
        MendError: the scale of an attention cannot be folded into its queries.
    """
    before = analysis.program.attributes
    wanted = demands(analysis, cut, sized_nodes(analysis))
    attributes = {attribute: (before[attribute], new) for attribute, new in wanted.items()}
    return Mended(attributes, list(_scales(analysis, cut)), [], [])


def _scales(analysis: Analysis, cut: Cut) -> Iterator[Scale]:
    """Where the queries are made of each attention whose layer computes 1/√d anew."""
    folder, floats = Folder(analysis), analysis.program.floats
    for attention in attentions(analysis.program):
        node = analysis.program.nodes[attention.first]
        axis = analysis.axes[operands(node)[0]][-1]
        old, new = axis_size(axis), cut.size(axis)
        layers = {a.module for a, value in floats.items() if math.isclose(value, old**-0.5)}
        if old == new or not layers:
            continue
        for place in folder.places(attention.first):
            if any(place.tensor.startswith(f"{layer}/") for layer in layers):
                yield Scale(*place, (new / old) ** 0.5)
