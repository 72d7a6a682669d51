"""Groups whose cut changes a number that the code computes from a size, unseen by the trace.

Where a number is suspect, a few units of every group are cut from a copy without memory, and the
copy is run on shapes. Numbers that differ then give away their groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .errors import MendError, PlanError, TraceError
from .groups import Graph, Group
from .surgery.apply import cut
from .surgery.fold import computed_factors
from .trace import rules
from .trace.model import model_tensors
from .trace.numbers import computed_from, suspect
from .trace.program import Node, Program
from .trace.record import record
from .trace.rules import op_name
from .trace.tagged import Attribute, Source, leaves_of

REASON = (
    "the code computes a number from this size in a way that cannot be followed ({}); write it as "
    "d ** -0.5 or math.sqrt(d), or keep the number in an attribute"
)


def unseen(graph: Graph, model: nn.Module, example_inputs: Any) -> dict[str, str]:
    """The groups that cannot go because of such a number, and why."""
    program = graph.program
    groups = [group for group in graph if not group.replayed]
    followed = {id(program.nodes[c.position].call) for c in computed_factors(graph.analysis)}
    if not groups or program.swayed or not suspect(program, followed, partial(_varies, graph)):
        return {}
    return _Trial(graph, model, example_inputs, followed).blame(groups)


def _varies(graph: Graph, source: Source) -> bool:
    """Whether a number from this source may be another one after a cut."""
    axes = graph.analysis.axes
    return any(
        isinstance(leaf, Attribute)
        or leaf.value not in axes  # it was looked at for its shape alone, and not followed
        or len(graph.axis_incidence(axes[leaf.value][leaf.dim])[0]) > 0
        for leaf in leaves_of(source)
    )


class _Trial:
    """Cuts groups from a copy on shapes, and compares the numbers that it computes with."""

    def __init__(self, graph: Graph, model: nn.Module, example_inputs: Any, followed: set[int]):
        self.graph, self.model, self.inputs = graph, model, example_inputs
        self.before = list(_computing(graph.program))
        self.followed = followed

    def blame(self, groups: list[Group]) -> dict[str, str]:
        """The groups of these that change a number, and which: found by halves."""
        why = self._change(groups)
        if why == "":
            return {}
        if len(groups) == 1:
            return {groups[0].name: why} if why else {}
        half = len(groups) // 2
        found = self.blame(groups[:half]) | self.blame(groups[half:])
        return found if found or not why else {g.name: why for g in groups}

    def _change(self, groups: list[Group]) -> str | None:
        """What is wrong when a few units of each group go; None if they cannot go together."""
        try:
            plan = self.graph.plan({group.name: few(group) for group in groups})
        except (MendError, PlanError):
            return None
        if plan.replay:
            return None
        whole = self._skeleton(plan.tensors) if self.graph.program.on_shapes else self.model
        try:
            program = record(cut(whole, plan), self.inputs, rules.supported)
        except TraceError as error:
            return None if len(groups) > 1 else f"after the cut {error}"
        after = list(_computing(program))
        if len(after) != len(self.before):
            return REASON.format("it takes another way after the cut")
        why = next(filter(None, map(self._differs, self.before, after)), "")
        return REASON.format(why) if why else ""

    def _differs(self, old: Computing, new: Computing) -> str:
        """How a node's numbers differ from those before; empty if they do not."""
        where = f"{op_name(new.node.op)} in {new.node.module or 'the model'}"
        if op_name(old.node.op) != op_name(new.node.op) or len(old.tensors) != len(new.tensors):
            return f"{where} runs in place of {op_name(old.node.op)}"
        if id(old.node.call) in self.followed:
            return ""
        if old.numbers != new.numbers:
            return f"{where}: {old.numbers} becomes {new.numbers}"
        same = all(map(torch.equal, old.tensors, new.tensors))
        return "" if same else f"{where}: the values of a tensor"

    def _skeleton(self, changed: Iterable[str]) -> nn.Module:
        """A copy whose parameters hold no memory; buffers are shared if the cut leaves them."""
        memo: dict[int, Any] = {}
        for name, tensor in model_tensors(self.model).items():
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(_meta(tensor), tensor.requires_grad)
            elif name in changed:
                memo.setdefault(id(tensor), tensor.detach().clone())
            else:
                memo.setdefault(id(tensor), tensor)
        return copy.deepcopy(self.model, memo)


class Computing(NamedTuple):
    """A node that computes with numbers, or with tensors that the code made."""

    node: Node
    numbers: list[int | float]
    tensors: list[torch.Tensor]


def _computing(program: Program) -> Iterator[Computing]:
    for node in program.nodes:
        found = Computing(node, *computed_from(program, node))
        if found.numbers or found.tensors:
            yield found


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def few(group: Group) -> list[int]:
    """About a quarter of a group's units, equally many of every block."""
    blocks = group.blocks()
    count = group.allowed(max(1, min(map(len, blocks)) // 4))
    chosen: list[int] = np.concatenate([block[:count] for block in blocks]).tolist()
    return chosen
