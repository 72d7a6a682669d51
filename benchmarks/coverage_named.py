"""The axes that a person would name to be pruned, for twelve networks, and how many are offered."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import secateurs as sc

LIST = Path(__file__).with_name("coverage_named.json")


@cache
def named() -> dict[str, list[tuple[str, str, int, int]]]:
    """network -> (what, pattern of a parameter's path, its dimension, slices that go per unit)."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def offered(network: str, graph: sc.Graph) -> dict[str, list[int]] | None:
    """what -> [axes that are offered, axes that are named]; None for a network without a list.

    An axis is offered if some group takes as many slices of it with each unit as were named: the
    rows of a query projection are offered as heads where a unit takes all rows of one head.
    """
    if network not in named():
        return None
    found: dict[str, list[int]] = {}
    cuts = {(axis.tensor, axis.dim, axis.count) for group in graph for axis in group.axes}
    for what, pattern, dim, count in named()[network]:
        paths = [path for path in graph.program.parameters if fnmatchcase(path, pattern)]
        if not paths:
            raise KeyError(f"{network} has no parameter {pattern}")
        have = found.setdefault(what, [0, 0])
        have[0] += sum((path, dim, count) in cuts for path in paths)
        have[1] += len(paths)
    return found
