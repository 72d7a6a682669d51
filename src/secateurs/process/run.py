"""What runs of `prune` and `sparsify` share: how they start, go on, tell, stop and resume."""

from __future__ import annotations

import copy
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..batches import Loss, Objective
from ..errors import ConfigError, FileError, NotFiniteError
from ..files.store import loose_buffers, unique_state
from ..gates import trace
from ..trace.modes import evaluating
from .checkpoint import NAME
from .interrupt import Interrupt
from .options import Training
from .progress import Meter
from .stream import own_randomness
from .training import Trainer

log = logging.getLogger("secateurs")

Evaluate: TypeAlias = Callable[[nn.Module], float]
Callback: TypeAlias = Callable[[dict[str, Any], nn.Module], None]
Finetune: TypeAlias = Callable[[nn.Module, int], Any]


@dataclass(frozen=True)
class Hooks:
    """What the user plugs into a run."""

    loss: Loss | None
    objective: Objective | None
    evaluate: Evaluate | None
    metric: str
    mode: Literal["max", "min"]
    callbacks: tuple[Callback, ...]
    finetune: Finetune | None = None


class Saved(Protocol):
    """A checkpoint, as far as every run has one."""

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def over(self) -> bool:
        """Whether the run that wrote it came to its end."""


T = TypeVar("T", bound=Training)
S = TypeVar("S", bound=Saved)
R = TypeVar("R")


class Run(ABC, Generic[T, S, R]):
    """One run: the working model, and everything that the next step depends on."""

    trainer: Trainer
    interrupt: Interrupt
    meter: Meter
    settings: dict[str, Any]

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        options: T,
        hooks: Hooks,
        out: str | Path | None,
        *,
        resume: bool,
    ):
        if hooks.mode not in ("max", "min"):
            raise ConfigError(f"mode must be 'max' or 'min', not {hooks.mode!r}")
        if resume and out is None:
            raise ConfigError("resume=True needs out=, the directory of the interrupted run")
        if options.floor is not None and hooks.evaluate is None:
            raise ConfigError("a floor on the metric needs evaluate=")
        self.original, self.example_inputs = model, example_inputs
        self.options, self.hooks, self.resume = options, hooks, resume
        self.out = None if out is None else Path(out)
        self.graph = trace(model, example_inputs)
        self.model = copy.deepcopy(model)
        self._loose = loose_buffers(model)
        self.history: list[dict[str, Any]] = []
        self.stopped = ""
        self.finished = False

    # ------------------------------------------------------------------ what differs
    @abstractmethod
    def load(self, directory: Path) -> S:
        """Read the checkpoint of such a run."""

    @abstractmethod
    def restore(self, saved: S) -> None:
        """Take up the state of a checkpoint of a run with these settings."""

    @abstractmethod
    def write(self, out: Path) -> None:
        """Write down everything that the rest of the run depends on."""

    @abstractmethod
    def proceed(self) -> None:
        """Go on until there is a reason to stop."""

    @abstractmethod
    def revert(self) -> bool:
        """Go back to the last good state; whether there is one."""

    @abstractmethod
    def show(self) -> None:
        """Tell the meter where the run is."""

    @abstractmethod
    def result(self) -> R:
        """What came of it."""

    # ------------------------------------------------------------------ from start to end
    def start(self, trainer: Trainer) -> None:
        """Take a trainer of the working model, and take up the checkpoint that is there.

        Raises:
            ConfigError: the folder holds a run that was interrupted, and nobody says to resume.
            FileError: the checkpoint is broken, or of another run.
        """
        self.trainer = trainer
        if self.out is not None and os.path.lexists(self.out / NAME):
            saved = self.load(self.out)
            if self.resume:
                self._compare(saved.settings)
                self.restore(saved)
            elif not saved.over:
                raise ConfigError(
                    f"{self.out} holds a run that was interrupted; go on with resume=True, "
                    "or use another folder"
                )
        self.trainer.accelerator.wait_for_everyone()

    def go(self, *, progress: bool, way: str) -> R:
        """Run to the end, or to the first reason to stop.

        Args:
            progress: show it.
            way: what the first bar measures.
        """
        shown = progress and self.trainer.accelerator.is_main_process
        with (
            own_randomness(self.options.seed, 4),
            Interrupt() as self.interrupt,
            Meter(shown, way, bars=not self.trainer.shows) as self.meter,
        ):
            if self.options.trackers:
                self.trainer.accelerator.init_trackers("secateurs")
            try:
                self.proceed()
            except NotFiniteError as error:
                if not self.revert():
                    raise
                log.warning("%s; the last good state is kept", error)
                self.stopped = "nan"
            if self.options.trackers:
                self.trainer.accelerator.end_training()
            return self.result()

    def _compare(self, before: dict[str, Any]) -> None:
        """Refuse the checkpoint of a run with other settings."""
        for key in sorted(before.keys() | self.settings.keys()):
            if before.get(key) != self.settings.get(key):
                raise FileError(
                    f"the checkpoint in {self.out} is of a run with other settings: {key} was "
                    f"{before.get(key)}, now {self.settings.get(key)}; resume with the same, or "
                    "use another folder"
                )

    def asked(self) -> bool:
        """Whether somebody wants the run to stop here."""
        asked = self.trainer.any(self.interrupt.asked)
        if asked:
            self.stopped = "interrupted"
        return asked

    # ------------------------------------------------------------------ keeping track
    def record(self, facts: dict[str, Any], loss: float, started: float) -> None:
        """Evaluate the model and add a record to the history.

        Args:
            facts: what it says beyond the mean loss, the metric and the seconds.
            loss: the mean since the last record; NaN where it is not known.
            started: when that was.
        """
        value = self._evaluate()
        record = {
            **facts,
            "loss": None if loss != loss else loss,
            "metric": None if value is None or value != value else value,
            "seconds": time.perf_counter() - started,
        }
        self.history.append(record)
        if self.options.trackers:
            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
            self.trainer.accelerator.log(numbers, step=len(self.history))
        self.show()
        with self.trainer.weights():
            for callback in self.hooks.callbacks:
                callback(record, self.model)

    def _evaluate(self) -> float | None:
        if self.hooks.evaluate is None:
            return None
        with self.trainer.weights(), torch.no_grad(), evaluating(self.model):
            value = float(self.hooks.evaluate(self.model))
        return float(self.trainer.agree(value))

    def below_floor(self) -> bool:
        """Whether the last metric is worse than the floor."""
        floor, value = self.options.floor, self.history[-1]["metric"]
        if floor is None:
            return False
        if value is None:  # NaN holds no floor
            return True
        return bool(value < floor if self.hooks.mode == "max" else value > floor)

    def state(self) -> dict[str, Tensor]:
        """The tensors of the working model, buffers that are not persistent among them."""
        buffers = {
            name: buffer
            for name, buffer in self.model.named_buffers()
            if name in self._loose and buffer.layout == torch.strided
        }
        return buffers | unique_state(self.model)

    def checkpoint(self) -> None:
        """Write a checkpoint, where one is wanted."""
        if self.out is not None and self.trainer.accelerator.is_main_process:
            self.write(self.out)

    def told_metric(self) -> str:
        """The last metric in words, for the meter; empty if there is none."""
        value = self.history[-1].get("metric") if self.history else None
        return "" if value is None else f"; {self.hooks.metric} {value:.4f}"
