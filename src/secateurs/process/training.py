"""Weight updates: devices, precision and data parallelism are Accelerate's."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import DataError
from ..plan import Plan
from ..score import Loss, Objective
from ..trace.record import model_tensors
from .options import Options

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer, int], Any]


def seed_everything(*numbers: int) -> None:
    """Seed every generator from a tuple of numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    set_seed(seed)


@contextlib.contextmanager
def _own_randomness(*numbers: int) -> Iterator[None]:
    """Draw from a seed of one's own, and leave every generator as it was."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - loaders may use it
    with torch.random.fork_rng():
        seed_everything(*numbers)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


class Stream:
    """An endless stream of batches whose place is two numbers, so that it can be resumed.

    Epoch e is drawn after seeding with (seed, e): its order depends on nothing else.
    """

    def __init__(self, loader: Iterable[Any], seed: int):
        self.loader, self.seed = loader, seed
        self.epoch = self.index = 0
        self._batches: Iterator[Any] | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.epoch, self.index

    def seek(self, epoch: int, index: int) -> None:
        self.epoch, self.index, self._batches = epoch, index, None

    def take(self, count: int) -> Iterator[Any]:
        """The next batches.

        Raises:
            DataError: the loader is empty.
        """
        for _ in range(count):
            yield self._next()

    def _next(self) -> Any:
        if self._batches is None:
            with _own_randomness(self.seed, 1, self.epoch):
                self._batches = self._open()
                batch = next(self._batches, _END)
        else:
            batch = next(self._batches, _END)
        if batch is _END:
            if self.index == 0:
                raise DataError(
                    "the training data is empty; pass a DataLoader or a list of batches, not an "
                    "iterator that runs out"
                )
            self.seek(self.epoch + 1, 0)
            return self._next()
        self.index += 1
        return batch

    def _open(self) -> Iterator[Any]:
        for holder in _samplers(self.loader):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(int(torch.randint(1 << 62, ()).item()))
        return itertools.islice(iter(self.loader), self.index, None)


_END = object()


def _samplers(loader: Any) -> Iterator[Any]:
    """A loader and the samplers inside it: whatever may own a generator."""
    todo, seen = [loader], set()
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        todo += [getattr(item, name, None) for name in ("sampler", "batch_sampler")]


class Trainer:
    """The working model's optimizer and data, and how they take a step."""

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        loss: Loss | None,
        objective: Objective | None,
        optimizer: OptimizerFactory | None,
        scheduler: SchedulerFactory | None,
        options: Options,
    ):
        if (loss is None) == (objective is None):
            raise DataError("pass loss(output, target) or objective(model, batch), one of the two")
        self.options, self.loss, self.objective = options, loss, objective
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            cpu=options.device == "cpu",
            log_with=list(options.trackers) or None,
            project_dir="." if options.trackers else None,
        )
        self.device = torch.device(options.device or self.accelerator.device)
        self.model = model.to(self.device)
        self.stream = Stream(train, options.seed + self.accelerator.process_index)
        self._factory = optimizer or (lambda p: torch.optim.SGD(p, lr=options.lr, momentum=0.9))
        self._scheduler = scheduler
        self.replace_model(self.model)

    def replace_model(self, model: nn.Module) -> None:
        """Work on this model from now on, with a new optimizer."""
        self.model = model
        self.optimizer = self._factory([p for p in model.parameters() if p.requires_grad])
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def train(self, updates: int, each: Callable[[], bool]) -> float:
        """Update the weights; `each` is called before every update and may stop it.

        Returns:
            The mean loss.

        Raises:
            DataError: the loss is not finite.
        """
        if not updates:
            return float("nan")
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        schedule = self._scheduler(self.optimizer, updates) if self._scheduler else None
        running = self.accelerator.prepare_model(self.model, device_placement=False)
        optimizer = self.accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        losses = []
        was_training = self.model.training
        try:
            running.train()
            for _ in range(updates):
                if not each():
                    break
                losses.append(self._update(running, optimizer))
                if schedule is not None:
                    schedule.step()
        finally:
            self.accelerator.unwrap_model(running, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
            self.model.train(was_training)
        return float(np.mean(losses)) if losses else float("nan")

    def _update(self, model: nn.Module, optimizer: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in self.stream.take(self.options.accumulate):
            value = self._value(model, self.to_device(batch)).float().mean()
            number = float(value.detach())
            if not np.isfinite(number):
                raise DataError("the training loss is not finite (NaN or infinite)")
            self.accelerator.backward(value / self.options.accumulate)
            total += number / self.options.accumulate
        optimizer.step()
        return total

    def _value(self, model: nn.Module, batch: Any) -> Tensor:
        if self.objective is not None:
            return self.objective(model, batch)
        if self.loss is None or not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError("loss(output, target) needs batches that are pairs (input, target)")
        x, target = batch
        output = model(**x) if isinstance(x, dict) else model(*pytree.tree_leaves(x))
        return self.loss(output, target)

    def to_device(self, data: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), data)

    def share(self, states: dict[str, Any]) -> list[dict[str, Any]]:
        """The states of all data parallel workers, in order."""
        if self.accelerator.num_processes == 1:
            return [states]
        gathered: list[dict[str, Any]] = gather_object([states])
        return gathered

    # ------------------------------------------------------------------ optimizer state
    def cut_optimizer(self, plan: Plan, shapes: dict[str, torch.Size]) -> None:
        """Slice what the optimizer remembers of each cut parameter; momentum survives.

        Args:
            plan: applied in place to the model, whose parameters are still the same objects.
            shapes: the parameters' shapes before the cut.
        """
        own = model_tensors(self.model)
        for name, slices in plan.tensors.items():
            state = self.optimizer.state.get(own[name], {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == shapes[name]:
                    state[key] = slices.cut(value)

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the optimizer remembers: tensors and plain numbers, by 'parameter/key'."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for name, parameter in model_tensors(self.model).items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                else:
                    numbers[f"{name}/{key}"] = value
        return tensors, numbers

    def restore_optimizer(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        own = model_tensors(self.model)
        for path, value in {**tensors, **numbers}.items():
            name, _, key = path.rpartition("/")
            if isinstance(value, Tensor):
                value = value.to(own[name].device if value.dim() else "cpu")
            self.optimizer.state[own[name]][key] = value
