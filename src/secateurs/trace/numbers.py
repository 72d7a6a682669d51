"""Numbers in a program that its code may have computed from a size, out of the trace's sight.

`np.sqrt(d)`, `float(d)` or `torch.tensor(d)` lose the provenance of d. A cut that changes d changes
such a number too. Whether there are any cannot be told from one run; what can is where none is: a
number that a module holds, or that is written in the code, is no size.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Container, Iterator
from types import CodeType
from typing import Any

import torch

from .program import Call, Node, Program, Ref
from .tagged import Source, TaggedInt

_NUMBERS = frozenset({"number", "float", "Optional[number]", "Optional[float]", "Tensor"})


def constants(code: CodeType, kind: type = int) -> Iterator[Any]:
    """Every use of a constant of this type in a piece of code; those inside tuples too."""
    for instruction in dis.get_instructions(code):
        values = instruction.argval
        if instruction.opname.startswith(("LOAD_CONST", "RETURN_CONST", "LOAD_SMALL_INT")):
            for value in values if isinstance(values, tuple) else (values,):
                if type(value) is kind:
                    yield value


def numbers(node: Node) -> list[int | float]:
    """The numbers that a node computes with: no sizes, no dims."""
    out = []
    for argument, given in zip(node.op._schema.arguments, node.args, strict=False):
        if type(given) in (int, float) and str(argument.type) in _NUMBERS:
            out.append(given)
    return [*out, *(n for n in node.kwargs.values() if type(n) is float)]


def computed_from(program: Program, node: Node) -> tuple[list[int | float], list[torch.Tensor]]:
    """The numbers of a node, and the constant tensors that it is given."""
    held = [a for arg in node.args for a in (arg if isinstance(arg, list) else [arg])]
    known = program.constants
    given = [known[ref.id] for ref in held if isinstance(ref, Ref) and ref.id in known]
    return numbers(node), [tensor for tensor in given if tensor.numel()]


def suspect(program: Program, followed: Container[int], varies: Callable[[Source], bool]) -> bool:
    """Whether a number, or a constant tensor, may be another one after a cut.

    Args:
        program: of an uncut model.
        followed: ids of the calls whose number is followed from where it comes.
        varies: whether what comes from a source may change with a cut.
    """
    if any(len(sites) > _count(*key) for key, sites in program.written.items()):
        return True
    for node in program.nodes:
        own, tensors = computed_from(program, node)
        if tensors:
            return True
        if node.call is None or not own or id(node.call) in followed:
            continue
        if any(varies(number.source) for number in node.call.floats):
            return True
        if any(_unknown(number, node.call, varies) for number in own if number not in (0, 1)):
            return True
    return False


def _unknown(number: float, call: Call, varies: Callable[[Source], bool]) -> bool:
    """Whether an integer that was given to a torch function may be another one after a cut."""
    same = [i for i in call.integers if i == number]
    if not same:
        return False  # what a kernel of PyTorch brings along is no part of the code
    sources = [i.source for i in same if isinstance(i, TaggedInt)]
    if sources:
        return any(map(varies, sources))
    return call.code is None or number not in constants(call.code)


def _count(code: CodeType, number: float) -> int:
    """How often a float is written in a piece of code."""
    return sum(value == number for value in constants(code, float))
