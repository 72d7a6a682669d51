"""Which axes are heads, and which lie inside them, found from the products that ran.

Attention is two products of live tensors, the result of the first being an operand of the second
with no weight between them: (q·kᵀ)·v, or q·(kᵀ·v) where it is linear. Axes along which both run as
a batch are heads; those that are summed over, or passed on by the values, lie inside a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .analyse import Analysis
from .labels import Axis, Factor, leaves
from .program import Node, Program
from .rules import is_pointwise, op_name, passes_on

_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # name -> where its first operand is
_NORMALISES = frozenset("_softmax softmax _safe_softmax _log_softmax".split())


@dataclass(frozen=True)
class Attention:
    """Two products: positions of their nodes, and which operand of the second the first makes.

    Attributes:
        first, second: positions of the nodes in the program.
        side: 0 or 1, the operand of the second that comes from the first.
        softmax: whether a softmax lies between them: the first makes scores.
    """

    first: int
    second: int
    side: int
    softmax: bool


def operands(node: Node) -> tuple[int, int]:
    """The values that a product multiplies."""
    at = _PRODUCTS[op_name(node.op)]
    return node.args[at].id, node.args[at + 1].id


def attentions(program: Program) -> list[Attention]:
    """Every attention of a program, in order."""
    made: dict[int, tuple[int, bool]] = {}  # value -> the product that it comes from, softmax
    out = []
    for position, node in enumerate(program.nodes):
        name = op_name(node.op)
        if name in _PRODUCTS and all(program.values[v].live for v in operands(node)):
            for side, value in enumerate(operands(node)):
                if value in made:
                    out.append(Attention(made[value][0], position, side, made[value][1]))
                    break
            else:
                made.update((v, (position, False)) for v in node.outputs if v is not None)
            continue
        found = next((made[v] for v in node.inputs if v in made), None)
        if found and (is_pointwise(node.op) or passes_on(node.op) or name in _NORMALISES):
            seen = (found[0], found[1] or name in _NORMALISES)
            made.update((v, seen) for v in node.outputs if v is not None)
    return out


def kinds(analysis: Analysis) -> Iterator[tuple[Axis, str]]:
    """(axis, kind of its units) for the axes of every attention: head, kv-head or head-dim."""
    nodes = analysis.program.nodes
    repeated = {id(leaf) for leaf in leaves(analysis.repeated)}
    for attention in attentions(analysis.program):
        first, second = (operands(nodes[p]) for p in (attention.first, attention.second))
        if any(analysis.is_weight(v) for v in (*first, *second)):
            continue  # the weights of an expert, picked by its number
        inside, other = analysis.axes[first[0]], analysis.axes[second[1 - attention.side]]
        if attention.softmax:
            dims = [inside[-1], other[-1 if attention.side == 0 else -2]]
        else:
            dims = [inside[-2], analysis.axes[first[1]][-1]]
        for axis in dims:
            yield axis, "head-dim"
        for value in (*first, *second):
            if len(analysis.axes[value]) == 3:
                yield from _heads(leaves(analysis.axes[value][0]), repeated)


def _heads(parts: list[Factor], repeated: set[int]) -> Iterator[tuple[Axis, str]]:
    """The kinds of the factors of the batch axis of a product."""
    shared = any(id(part) in repeated and part.frozen is None for part in parts)
    for part in parts:
        if part.copies is not None:
            yield (part.copies.source,), "kv-head"
            yield (part.copies.own,), "head"
        elif part.frozen is None:
            yield (part,), "kv-head" if shared and id(part) not in repeated else "head"
