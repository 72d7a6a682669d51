"""What a run on other inputs would reach, and this one did not.

Where the code looks at values (which tokens go to which expert), a run leaves modules out. What is
coupled to a module that ran beside them is coupled to them too, in a way that was not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

from .groups import Graph, Group


def unreached(graph: Graph) -> dict[str, str]:
    """The groups that a module left out by this run may belong to, and why they cannot go."""
    program = graph.program
    if not program.looks:
        return {}
    left_out = {_item(name) for name in program.parameters.keys() - program.tensors.keys()}
    beside = {
        (container, item): example
        for container, example in sorted(filter(None, left_out))
        for item in _items(graph, container)
        if (container, item) not in left_out
    }
    return {group.name: why for group in graph for why in _why(group, beside)}


def _item(path: str) -> tuple[str, str] | None:
    """(container, item) of the innermost numbered module on a path: 'experts', '3'."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return (".".join(parts[: numbers[-1]]), parts[numbers[-1]]) if numbers else None


def _items(graph: Graph, container: str) -> set[str]:
    found = (_item(name) for name in graph.program.tensors)
    return {own[1] for own in found if own is not None and own[0] == container}


def _why(group: Group, beside: dict[tuple[str, str], str]) -> Iterator[str]:
    """A reason if a group holds both a module beside one that was left out and something else."""
    homes = {_item(member.tensor) for member in group.axes}
    for home in homes:
        if home in beside and len(homes) > 1:
            container, _ = home
            yield (
                f"{container}.{beside[home]} was not reached by the traced run and may read it "
                "too; trace on inputs that reach it"
            )
            return
