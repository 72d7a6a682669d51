"""What every experiment of a comparison is done with: the same network, data and functions."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import Loss, Objective, loss_of, to_device
from ..criteria import Criterion
from ..errors import DataError
from ..gates import trace
from ..groups import Graph
from ..process.options import Options
from ..process.run import Evaluate, Finetune
from ..process.stream import Stream
from ..process.training import OptimizerFactory, SchedulerFactory, Trainer
from ..trace.modes import evaluating
from .options import CompareOptions


@dataclass(frozen=True)
class Bench:
    """What all experiments share; none of them changes any of it.

    Attributes:
        pools: seed -> the batches that the scores of this seed are taken over.
        data, train: what iterative rankings and weight updates draw from.
        criteria: by name, without the oracle.
    """

    model: nn.Module
    example_inputs: Any
    pools: dict[int, list[Any]]
    data: Iterable[Any]
    train: Iterable[Any]
    loss: Loss | None
    objective: Objective | None
    evaluate: Evaluate | None
    criteria: dict[str, Criterion]
    optimizer: OptimizerFactory | None
    scheduler: SchedulerFactory | None
    finetune: Finetune | None
    options: CompareOptions

    @functools.cached_property
    def graph(self) -> Graph:
        return trace(self.model, self.example_inputs)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to workers: not the graph, which each finds for itself.

        A batch that is a view of all the data would bring all of it along, each batch anew.
        """
        state = {name: value for name, value in self.__dict__.items() if name != "graph"}
        own: dict[int, Tensor] = {}

        def alone(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().nbytes() == tensor.nbytes:
                return tensor
            return own.setdefault(id(tensor), tensor.clone())

        for name in ("pools", "data", "train"):
            state[name] = pytree.tree_map_only(Tensor, alone, state[name])
        return state

    @property
    def device(self) -> torch.device:
        own = next(iter(self.model.parameters()), None)
        return torch.device("cpu") if own is None else own.device

    def mean_loss(self, model: nn.Module) -> float:
        """The mean loss of a network over the data of the oracle.

        Raises:
            DataError: the batches are not what the loss needs.
        """
        total = 0.0
        batches = self.pools[self.options.seeds[0]]
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                batch = to_device(batch, self.device)
                value = loss_of(model, batch, self.loss, self.objective)
                total += float(value.double().mean()) * count(batch)
        return total / sum(map(count, batches))

    def judge(self, model: nn.Module) -> float:
        """The metric of a network: what `evaluate` gives, else the mean loss."""
        if self.evaluate is None:
            return self.mean_loss(model)
        with torch.no_grad(), evaluating(model):
            return float(self.evaluate(model))

    def tuning(self, seed: int) -> Tuning:
        """The fine-tuning of one experiment."""
        return Tuning(self, seed)


class Tuning:
    """All the weight updates of one experiment, in order; `left` are still to be made.

    A removal asks for its part; the last call asks for more than are left, and gets the rest.
    """

    def __init__(self, bench: Bench, seed: int):
        self.bench, self.left = bench, bench.options.updates
        self.stream = Stream(shuffled(bench.train, seed), seed)
        self.options = Options(lr=bench.options.lr, device=str(bench.device), seed=seed)

    def __call__(self, model: nn.Module, updates: int) -> None:
        updates = min(updates, self.left)
        self.left -= updates
        own = self.bench
        if updates and own.finetune is not None:
            own.finetune(model, updates)
        elif updates:
            trainer = Trainer(
                model,
                self.stream.loader,
                own.loss,
                own.objective,
                own.optimizer,
                own.scheduler,
                self.options,
            )
            trainer.stream = self.stream  # goes on where the last part ended
            trainer.train(updates, lambda: True)


def shuffled(data: Iterable[Any], seed: int) -> Iterable[Any]:
    """The same batches; those of a list in an order drawn from the seed, as a loader does."""
    if not isinstance(data, (list, tuple)):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return [data[i] for i in order.tolist()]


def pool(data: Iterable[Any], seed: int, examples: int) -> list[Any]:
    """The first batches of an epoch that hold so many examples, or all of it.

    Raises:
        DataError: there is no batch.
    """
    stream, out, seen = Stream(shuffled(data, seed), seed), [], 0
    while seen < examples:
        [batch] = stream.take(1)
        if stream.epoch:
            break
        out.append(batch)
        seen += count(batch)
    return out


def count(batch: Any) -> int:
    """The examples in a batch: the first size of its first tensor.

    Raises:
        DataError: it holds no tensor.
    """
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise DataError(f"a batch must hold tensors with the examples first, not {type(batch)}")
