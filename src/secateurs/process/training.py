"""Weight updates: devices, precision and data parallelism are Accelerate's."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn

from ..batches import Loss, Objective, loss_of, to_device
from ..errors import ConfigError, DataError, FileError, NotFiniteError
from ..plan import Plan
from ..trace.model import model_tensors
from .options import Training
from .stream import Stream

log = logging.getLogger("secateurs")

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer, int], Any]
Weights: TypeAlias = Callable[[], contextlib.AbstractContextManager[Any]]


def make_accelerator(options: Training) -> Accelerator:
    """Accelerate as the options say.

    Raises:
        ConfigError: this process uses Accelerate with other settings already.
    """
    try:
        return Accelerator(
            mixed_precision=options.precision,
            cpu=options.device == "cpu",
            log_with=list(options.trackers) or None,
            project_dir="." if options.trackers else None,
        )
    except ValueError as error:
        raise ConfigError(
            f"Accelerate refuses precision={options.precision!r}, device={options.device!r}: "
            f"{error}; one process keeps one precision and device, so start a new one"
        ) from error


def check_finite(model: nn.Module) -> None:
    """Refuse a model that training has spoilt.

    Raises:
        NotFiniteError: a weight is NaN or infinite.
    """
    for name, tensor in model_tensors(model).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NotFiniteError(f"{name} is not finite (NaN or infinite) after training")


class Trainer:
    """The working model's optimizer and data, and how they take a step.

    Attributes:
        weights: opened around every forward and backward pass, and closed when the optimizer
            steps: masks apply there.
        losses: of each update of the last call of `train`.
        shows: whether it draws a bar of its own as it goes.
    """

    losses: list[float]
    shows = False

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        loss: Loss | None,
        objective: Objective | None,
        optimizer: OptimizerFactory | None,
        scheduler: SchedulerFactory | None,
        options: Training,
    ):
        self.options, self.loss, self.objective = options, loss, objective
        self.weights: Weights = contextlib.nullcontext
        self.accelerator = make_accelerator(options)
        try:
            self.device = torch.device(options.device or self.accelerator.device)
            self.model = model.to(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device {options.device!r} cannot be used: {error}") from error
        self.stream = Stream(
            train, options.seed, self.accelerator.process_index, self.accelerator.num_processes
        )
        self._factory = optimizer or (lambda p: torch.optim.SGD(p, lr=options.lr, momentum=0.9))
        self._scheduler = scheduler
        self.replace_model(self.model)

    def replace_model(self, model: nn.Module) -> None:
        """Work on this model from now on, with a new optimizer."""
        self.model = model
        trainable = [p for p in model.parameters() if p.requires_grad]
        # a model that is frozen altogether can be pruned, though not fine-tuned
        self._frozen = not trainable
        self.optimizer = self._factory(trainable or [nn.Parameter(torch.zeros(1))])
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._schedule: Any = None
        self._place = (0, 0)  # of the schedule: updates done, and of how many

    def train(
        self, updates: int, each: Callable[[], bool], *, done: int = 0, of: int | None = None
    ) -> float:
        """Update the weights; `each` is called before every update and may stop it.

        Args:
            updates: how many.
            each: whether to go on.
            done, of: where these updates stand in a longer phase, for the scheduler.

        Returns:
            The mean loss; each is in `losses`.

        Raises:
            DataError: the loss does not depend on a weight that could be trained.
            NotFiniteError: the loss or a weight is not finite.
        """
        self.losses = losses = []
        if not updates:
            return float("nan")
        schedule = self._scheduled(done, updates if of is None else of)
        with self._prepared() as (running, optimizer):
            for _ in range(updates):
                if not each():
                    break
                losses.append(self._update(running, optimizer))
                if schedule is not None:
                    schedule.step()
        self._place = (done + len(losses), self._place[1])
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():  # each worker's statistics are its own
                broadcast(buffer)
        check_finite(self.model)
        return float(np.mean(losses)) if losses else float("nan")

    def settle(self) -> None:
        """See to it that the model's tensors hold the weights as they are without a mask."""

    def drawn(self, count: int) -> Iterator[Any]:
        """Batches to judge weights by."""
        return map(self.to_device, self.stream.take(count))

    def _scheduled(self, done: int, of: int) -> Any:
        """The scheduler of a phase at its place; one that goes on elsewhere is stepped there."""
        if done and self._place == (done, of):
            return self._schedule
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        self._place = (done, of)
        self._schedule = self._scheduler(self.optimizer, of) if self._scheduler else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no weight was updated meanwhile
            for _ in range(done if self._schedule is not None else 0):
                self._schedule.step()
        return self._schedule

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[tuple[nn.Module, Any]]:
        """The model and optimizer as Accelerate runs them; afterwards the model is plain again."""
        own = self.model.__dict__
        forward = own.get("forward")
        modes = {module: module.training for module in self.model.modules()}
        whole = self.model.training
        running = self.accelerator.prepare_model(self.model, device_placement=False)
        try:
            for module, mode in modes.items():
                module.training = mode or not whole  # a layer that is kept in eval mode stays so
            yield (
                running,
                self.accelerator.prepare_optimizer(self.optimizer, device_placement=False),
            )
        finally:
            self.accelerator.unwrap_model(running, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
            own.pop("_is_accelerate_prepared", None)
            own.pop("_original_forward", None)
            own.pop("forward", None)
            if forward is not None:
                own["forward"] = forward
            for module, mode in modes.items():
                module.training = mode

    def _update(self, model: nn.Module, optimizer: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with self.weights():
            for batch in self.stream.take(self.options.accumulate):
                value = loss_of(model, self.to_device(batch), self.loss, self.objective)
                value = value.float().mean()
                number = float(value.detach())
                if not np.isfinite(number):
                    raise NotFiniteError("the training loss is not finite (NaN or infinite)")
                total += number / self.options.accumulate
                if self._frozen:
                    continue
                if not value.requires_grad:
                    raise DataError(
                        "the training loss depends on no weight that requires a gradient: compute "
                        "it from the model's output, without detach() or no_grad()"
                    )
                self.accelerator.backward(value / self.options.accumulate)
        if not self._frozen:
            optimizer.step()
        return total

    def to_device(self, data: Any) -> Any:
        return to_device(data, self.device)

    def any(self, flag: bool) -> bool:
        """Whether any worker says so."""
        if self.accelerator.num_processes == 1:
            return flag
        return any(gather_object([flag]))

    def agree(self, value: Any) -> Any:
        """The main worker's value, on all workers."""
        if self.accelerator.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all workers."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values, "mean")

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
            arrays = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.dim()}
            if any(value.shape != shapes[name] for value in arrays.values()):
                log.info("what the optimizer remembers of %s cannot be cut; it starts anew", name)
                del self.optimizer.state[own[name]]
                continue
            for key, value in arrays.items():
                state[key] = slices.cut(value)

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the optimizer remembers: tensors and plain numbers, by 'parameter/key'."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                else:
                    numbers[f"{name}/{key}"] = value
        return tensors, numbers

    def restore_optimizer(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take up what `optimizer_state` gave.

        Raises:
            FileError: it names a parameter that the model does not have.
        """
        own = dict(self.model.named_parameters())
        for path, value in {**tensors, **numbers}.items():
            name, _, key = path.rpartition("/")
            if name not in own:
                raise FileError(f"the checkpoint's optimizer knows a parameter {name!r}; none is")
            if isinstance(value, Tensor):
                value = value.to(own[name].device if value.dim() else "cpu")
            self.optimizer.state[own[name]][key] = value
