"""Prune within a training of the user's own: gates while it runs, and one cut at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from .. import budget as budgets
from ..cost import Cost
from ..criteria import Criterion, find_criterion
from ..errors import ConfigError
from ..gates import Proof, zeroed
from ..groups import Graph, Selection
from ..plan import Plan
from ..process.options import Ranking, validated
from ..ranking import choose, importance, moves, smallest
from ..score import needs_loss, score
from .carry import native
from .cut import apply, trace, verify
from .data import batches
from .fit import synced
from .layers import Layer, variables_of
from .losses import compiled_loss
from .working import Working


class PruneCallback(keras.callbacks.Callback):
    """A callback of `fit` after which a smaller model is there.

    A smaller Keras model is a new one, which the `fit` that is running cannot go on with. So the
    units that are chosen are gated first: the weights that read them are zero after every batch,
    which is the same function as without them. At the end of the training they are cut.

    Args:
        x, y, sample_weight, batch_size: what the units are scored on, as for `secateurs.score`.
        budget: as for `secateurs.prune`.
        epochs: the way to the budget is taken in so many equal steps, one at the end of each of the
            first epochs.
        criterion, loss: as for `secateurs.score`.
        score_batches: batches that each ranking is made from.
        example_inputs: only where the model does not know the shape of its inputs.
        **options: see `secateurs.process.options.Ranking`.

    Attributes:
        pruned: the smaller model, compiled as the trained one; None until the training ends.
        plan: what was cut from the trained one.
        proof: the law of the cut.

    Raises:
        BudgetError, ConfigError: as `secateurs.prune` does; or units are read by something else
            than a weight, where no weight can gate them.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        budget: Mapping[str, float],
        epochs: int = 1,
        sample_weight: Any = None,
        batch_size: int = 32,
        criterion: str | Criterion = "taylor",
        loss: Any = None,
        score_batches: int = 10,
        example_inputs: Any = None,
        **options: Any,
    ):
        super().__init__()
        if epochs < 1:
            raise ConfigError(f"epochs must be at least 1, not {epochs}")
        self.pruned: Layer | None = None
        self.plan: Plan | None = None
        self.proof: Proof | None = None
        self._data = batches(x, y, sample_weight, batch_size=batch_size)
        self._budget, self._steps, self._loss = budget, epochs, loss
        self._criterion, self._score_batches = find_criterion(criterion), score_batches
        self._inputs, self._options = example_inputs, validated(Ranking, options)
        self._units: dict[str, list[int]] = {}
        self._masks: list[tuple[Any, Any]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Trace the model, and refuse a budget that is out of reach."""
        self._graph: Graph = trace(self.model, self._inputs)
        self._cost = Cost(self._graph)
        limits = self._options.limits
        limits.check(self._graph)
        least = smallest(self._graph, limits)
        self._targets = budgets.targets(self._budget, self._cost)
        budgets.check_reachable(self._targets, self._cost, least)
        self._gates(least)
        self._units, self._masks = {}, []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Choose the units of this step, those of the steps before among them."""
        if epoch < self._steps:
            self._choose((epoch + 1) / self._steps)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Close the gates again, which the update may have opened."""
        if self._masks:
            synced(self.model)
        for variable, mask in self._masks:
            variable.assign(keras.ops.multiply(variable, mask))

    def on_train_end(self, logs: Any = None) -> None:
        """Cut what is gated."""
        self.plan = self._graph.plan(self._units)
        self.pruned = apply(self.model, self.plan)
        self.proof = verify(self.model, self.pruned, self.plan, self._inputs, graph=self._graph)
        self.proof.demand()

    def _choose(self, way: float) -> None:
        """Choose anew, and close the gates, at this part of the way to the budget."""
        own, graph = self._options, self._graph
        scores = score(
            Working(self.model),
            graph,
            self._data,
            loss=compiled_loss(self.model, self._loss) if needs_loss(self._criterion) else None,
            criterion=self._criterion,
            batches=self._score_batches,
        )
        ranked = importance(
            scores,
            self._cost,
            normalize=own.normalize,
            flops_weight=own.flops_weight,
            cost_power=own.cost_power,
            measure=next(iter(self._targets)),
        )
        for name, units in self._units.items():
            ranked[name][units] = -np.inf  # what is gated stays so
        whole = self._cost.all()
        target = {m: round(whole[m] - way * (whole[m] - t)) for m, t in self._targets.items()}
        sizes = {group.name: group.size for group in graph.groups}
        candidates = moves(graph, ranked, own.limits, sizes)
        self._units = choose(graph, self._cost, candidates, target, graph.size)
        gates = self._gates(graph.select(self._units))
        variables = variables_of(self.model)
        self._masks = [(variables[name], native(mask)) for name, mask in gates.items()]
        self.on_train_batch_end(0)

    def _gates(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Ones and zeros for the weights that read these units, by name."""
        ones = nn.Module()
        for name, tensor in Working(self.model).state_dict().items():
            ones._buffers[name] = torch.ones_like(tensor)
        found = zeroed(self._graph, ones, selection)
        if found is None:
            raise ConfigError(
                "some units that may go are read by something else than a weight, so that no "
                "weight gates them; leave them out with ignore=…, or use secateurs.prune"
            )
        return found
