"""Attributes that no function is given, but that tell a reader a size which a cut changes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TypeAlias

from ..trace.analyse import Analysis
from ..trace.labels import leaves
from ..trace.rules import op_name
from ..trace.sizes import Cut
from ..trace.tagged import Attribute

Axes: TypeAlias = Mapping[tuple[str, int], tuple[int, int]]

# Attributes that describe a weight's axes to a reader, as 'weight.attribute', by the role of the
# axis that they describe.
_DESCRIBES = {
    "writes": re.compile(
        r"(.*\.(out_|embedding_dim|num_features|num_experts)|weight_hr.*\.proj_size|weight_hh\.hidden_size)"
    ),
    "reads": re.compile(
        r"(.*\.in_|(?![kv]_proj_weight).*\.embed_dim$|(in|k)_proj_weight\.kdim$|"
        r"(in|v)_proj_weight\.vdim$|weight_ih(_l0(_reverse)?)?\.input_size|weight_h[hr].*\.hidden_size|"
        r"down_proj\.intermediate_(dim|size)|gate_up_proj\.hidden_(dim|size))"
    ),
    "carries": re.compile(
        r".*\.(num_(features|channels|parameters)|in_channels|out_channels|num_experts)"
    ),
}
# Attributes that say how many queries share a key: a kernel that finds this by itself is not told.
_REPEATS = re.compile(r".*(key_value|kv).*groups|n_rep|.*per_kv")


@functools.cache
def _describes(role: str, weight: str, name: str) -> bool:
    return _DESCRIBES[role].match(f"{weight}.{name}") is not None


def repeats(analysis: Analysis, cut: Cut) -> dict[Attribute, int]:
    """Attributes of the modules that repeat keys, where they say how often."""
    out: dict[Attribute, int] = {}
    repeated, attributes = set(analysis.repeated), analysis.program.attributes
    for node in analysis.program.nodes if repeated else ():
        axes = analysis.axes[node.outputs[0] or 0] if op_name(node.op) == "expand" else ()
        for factor in repeated.intersection(leaf for axis in axes for leaf in leaves(axis)):
            new = cut.size((factor,))
            for attribute, value in attributes.items() if new != factor.size else ():
                named = attribute.item is None and _REPEATS.fullmatch(attribute.name)
                if named and attribute.module == node.module and value == factor.size:
                    out[attribute] = new
    return out


def descriptions(
    analysis: Analysis, axes: Axes, solved: Mapping[Attribute, int]
) -> dict[Attribute, int]:
    """Attributes that no function was given but that tell a reader the size of a weight."""
    owned: dict[str, list[tuple[Attribute, int]]] = {}
    for attribute, value in analysis.program.attributes.items():
        if attribute.item is None:
            owned.setdefault(attribute.module, []).append((attribute, value))
    out: dict[Attribute, int] = {}
    for (name, dim), (old, new) in axes.items():
        role = analysis.roles.get((name, dim), "carries")
        path, _, weight = name.rpartition(".")
        groups = next((n for a, n in owned.get(path, ()) if a.name == "groups"), 1)
        for attribute, value in owned.get(path, ()):
            for times in {1, groups}:  # an axis inside the groups of a convolution
                if value == old * times and _describes(role, weight, attribute.name):
                    out[attribute] = new * times
    for used, new in solved.items():  # a depthwise convolution's groups are its input channels
        old = analysis.program.attributes[used]
        for attribute, value in owned.get(used.module, ()) if used.name == "groups" else ():
            if value == old and attribute not in out and _describes("reads", "", attribute.name):
                out[attribute] = new
    return out
