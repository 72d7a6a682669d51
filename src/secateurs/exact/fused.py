"""Calls of a fused kernel, which the trace takes apart to follow it, and a replay makes whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..trace.program import Invocation, Node, Program, Ref

_OPS = {F.scaled_dot_product_attention: torch.ops.aten.scaled_dot_product_attention.default}


@dataclass(frozen=True)
class Fused:
    """A call: the positions of its nodes in the program, and the one node that does the same."""

    parts: frozenset[int]
    node: Node


def fused_calls(program: Program) -> Iterator[Fused]:
    """The calls of fused kernels of which nothing but the result is read elsewhere."""
    calls: dict[int, tuple[Invocation, list[int]]] = {}
    readers: dict[int, set[int]] = {value: {-1} for value in program.output_ids()}
    for position, node in enumerate(program.nodes):
        for value in node.inputs:
            readers.setdefault(value, set()).add(position)
        given = node.call.invocation if node.call else None
        if given is not None and given.function in _OPS:
            calls.setdefault(id(node.call), (given, []))[1].append(position)
    for given, positions in calls.values():
        parts, node = frozenset(positions), _as_node(given, program.nodes[positions[0]].module)
        made = {out for part in parts for out in program.nodes[part].outputs if out is not None}
        between = made.difference(node.outputs)
        seen = any(not readers.get(value, parts) <= parts for value in between)
        if made.issuperset(node.outputs) and -1 not in node.inputs and not seen:
            yield Fused(parts, node)


def _as_node(given: Invocation, module: str) -> Node:
    leaves = pytree.tree_leaves((given.args, given.kwargs))
    return Node(
        _OPS[given.function],
        tuple(given.args),
        given.kwargs,
        (given.result.id,),
        multiple=False,
        module=module,
        inputs=tuple(leaf.id for leaf in leaves if isinstance(leaf, Ref)),
    )
