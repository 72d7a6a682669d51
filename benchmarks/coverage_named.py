"""The axes that a person would name to be pruned, for twelve networks, and how many are offered."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import secateurs as sc

LIST = Path(__file__).with_name("coverage_named.json")


@cache
def named() -> dict[str, list[list]]:
    """network -> [what, pattern of a parameter's path, its dimension, units along it]."""
    return json.loads(LIST.read_text())


def offered(network: str, graph: sc.Graph) -> dict[str, list[int]] | None:
    """what -> [axes that are offered, axes that are named]; None for a network without a list.

    An axis is offered if some group cuts it in as many units as were named: 768 rows that are
    twelve heads are offered where a unit takes 64 of them with it.
    """
    if network not in named():
        return None
    found: dict[str, list[int]] = {}
    cuts = {(m.tensor, m.dim, m.count) for group in graph for m in group.axes}
    for what, pattern, dim, units in named()[network]:
        paths = [path for path in graph.program.parameters if fnmatchcase(path, pattern)]
        if not paths:
            raise KeyError(f"{network} has no parameter {pattern}")
        have = found.setdefault(what, [0, 0])
        for path in paths:
            size = graph.program.parameters[path][dim]
            have[0] += (path, dim, size // (units or size)) in cuts
            have[1] += 1
    return found
