"""What must hold on every network: the law of each cut, and that nothing is lost on the way."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from tests.support import call, relative_error, snapshot
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import MendError, PlanError
from secateurs.groups import Graph, Group
from secateurs.plan import Plan

from .network import Network

TOLERANCE, ROUNDING = 1e-9, 1e-16  # relative; of numbers of about one, in float64


class Laws:
    """The laws on one network, with a random choice of units.

    Args:
        model: in float64 and eval mode.
        inputs: what it is called with.
        seed: of the choice.
        by_weights: whether every unit is read by weights alone. Then a network whose parameters are
            set to zero, by hand, is a second reference.

    Attributes:
        tally: how many networks, groups, plans and refusals there were.
    """

    def __init__(
        self, model: nn.Module, inputs: tuple[Tensor, ...], seed: int, *, by_weights: bool = True
    ):
        self.model, self.inputs, self.by_weights = model, inputs, by_weights
        self.rng = np.random.default_rng(seed)
        self.tally: Counter[str] = Counter(networks=1)

    def check(self) -> Counter[str]:
        """Raise an AssertionError where a law is broken."""
        before = snapshot(self.model)
        graph = sc.trace(self.model, self.inputs)
        assert snapshot(self.model) == before, "the trace changed the model"
        self.accounted(graph)
        self.tally["groups"] += len(graph)
        self.tally["networks with groups"] += len(graph) > 0
        for group in graph:
            self.tally["exact groups"] += group.exact
            self.law(graph, {group.name: self.some(group)})
        for exact_only in (True, False):
            units = {g.name: self.some(g) for g in graph if g.exact or not exact_only}
            plan = self.law(graph, units)
        if plan is not None:
            assert sc.Plan.from_json(plan.to_json()) == plan
            self.composed(graph, plan)
        assert snapshot(self.model) == before, "the model was changed"
        return self.tally

    def some(self, group: Group) -> list[int]:
        """Some units of a group, not all: equally many of each block."""
        blocks = group.blocks()
        most = min(map(len, blocks)) - 1
        count = int(self.rng.integers(1, most + 1)) if most else 0
        return [i for b in blocks for i in self.rng.choice(b, count, replace=False).tolist()]

    # ------------------------------------------------------------------ the law of the cut
    def law(self, graph: Graph, units: Mapping[str, list[int]]) -> Plan | None:
        """Cut in place, against the gated network; a typed refusal is counted."""
        if not any(units.values()):
            return None
        try:
            plan = graph.plan(units)
        except (MendError, PlanError) as error:
            self.tally[f"refused by {type(error).__name__}"] += 1
            return None
        small = sc.apply(copy.deepcopy(self.model), plan, inplace=True)
        proof = sc.verify(self.model, small, plan, self.inputs, graph=graph)
        nothing = proof.max_error <= ROUNDING  # outputs that are zero but for rounding
        assert nothing or proof.max_relative_error <= TOLERANCE, f"{proof}, cutting {units}"
        self.tally["exact plans" if plan.exact else "inexact plans"] += 1
        if plan.exact and self.by_weights:
            zeroed = without(self.model, plan)
            error = relative_error(call(zeroed, self.inputs), call(small, self.inputs))
            assert nothing or error <= TOLERANCE, (
                f"unlike zeroed parameters by {error:.1e}, cutting {units}"
            )
        return plan

    def composed(self, original: Graph, first: Plan) -> None:
        """One plan after another is the same as both at once."""
        once = sc.apply(self.model, first)
        graph = sc.trace(once, self.inputs)
        units = {group.name: self.some(group) for group in graph}
        try:
            second = graph.plan(units)
        except (MendError, PlanError):
            return
        try:
            whole = first.then(second, original)
        except PlanError as error:
            if "no unit of the original" not in str(error):
                raise
            self.tally["plans that the original has no units for"] += 1
            return
        twice, both = sc.apply(once, second), sc.apply(self.model, whole)
        assert relative_error(call(twice, self.inputs), call(both, self.inputs)) <= TOLERANCE
        self.tally["composed plans"] += 1

    # ------------------------------------------------------------------ nothing is silent
    def accounted(self, graph: Graph) -> None:
        """Every axis of every parameter is in a group, or frozen with a reason."""
        grouped = {(member.tensor, member.dim) for group in graph for member in group.axes}
        frozen = {(axis.tensor, axis.dim): axis for axis in graph.frozen}
        for name, parameter in self.model.named_parameters():
            for dim in range(parameter.dim()):
                known = frozen.get((name, dim))
                assert known or (name, dim) in grouped, f"{name}[{dim}] is lost"
                assert known is None or known.reason.strip(), f"{name}[{dim}] has no reason"
        for group in graph:
            assert group.size > 1, f"{group.name} has one unit"


def without(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model in which every slice of a plan is set to zero, by hand."""
    model = copy.deepcopy(model)
    tensors = model.state_dict()
    for name, dim, rows, index in removed(plan):
        tensors[name][rows].select(dim, index).zero_()
    return model


def removed(plan: Plan) -> Iterator[tuple[str, int, slice, int]]:
    """(tensor, dim, rows that it holds for, index) of everything that a plan deletes."""
    for name, slices in plan.tensors.items():
        for dim, blocks in slices.removed.items():
            run = slices.shape[0] // len(blocks)
            for number, block in enumerate(blocks):
                rows = slice(number * run, (number + 1) * run) if len(blocks) > 1 else slice(None)
                yield from ((name, dim, rows, index) for index in block)


def check(network: Network, seed: int) -> Counter[str]:
    """The laws on a generated network."""
    laws = Laws(network.module(), network.example(), seed, by_weights=network.by_weights)
    return laws.check()
