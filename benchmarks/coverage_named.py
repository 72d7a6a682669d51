"""The axes that a person would name to be pruned, for twelve networks, and how many are offered.

`python benchmarks/coverage_named.py` traces the twelve and prints how many are, and why the rest is
not.
"""

from __future__ import annotations

import json
from collections import Counter
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
        paths = _paths(network, graph, pattern)
        have = found.setdefault(what, [0, 0])
        have[0] += sum((path, dim, count) in cuts for path in paths)
        have[1] += len(paths)
    return found


def refused(network: str, graph: sc.Graph) -> Counter[tuple[str, str]]:
    """(what, reason) -> how many of the named axes are frozen for it, or offered in other units."""
    cuts = {(axis.tensor, axis.dim, axis.count) for group in graph for axis in group.axes}
    frozen = {(axis.tensor, axis.dim): axis.reason for axis in graph.frozen}
    return Counter(
        (what, frozen.get((path, dim), "offered in other units"))
        for what, pattern, dim, count in named()[network]
        for path in _paths(network, graph, pattern)
        if (path, dim, count) not in cuts
    )


def _paths(network: str, graph: sc.Graph, pattern: str) -> list[str]:
    """The parameters that a pattern means."""
    paths = [path for path in graph.program.parameters if fnmatchcase(path, pattern)]
    if not paths:
        raise KeyError(f"{network} has no parameter {pattern}")
    return paths


def main() -> None:
    """Trace every network of the list."""
    from coverage_models import sample  # it imports every library of models

    have, of = 0, 0
    for network in named():
        made = sample(network)
        graph = sc.trace(made.model, made.inputs)
        for what, (some, every) in (offered(network, graph) or {}).items():
            print(f"{network}: {what}: {some} of {every}")
            have, of = have + some, of + every
        for (what, reason), count in refused(network, graph).items():
            print(f"    {what}: {count} not: {reason}")
    print(f"all: {have} of {of} ({have / of:.0%})")


if __name__ == "__main__":
    main()
