"""Prune a Keras model: the loop of `process`, with updates by `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from ..criteria import Criterion, find_criterion
from ..process.describe import size_in_bytes
from ..process.greedy import GreedyRun
from ..process.options import make_options
from ..process.result import PruneResult
from ..process.run import Hooks
from ..score import needs_loss
from .data import batches
from .files import save
from .fit import FitTrainer, check_compiled, final_updates, in_updates
from .judging import Mode, judge, told_to
from .layers import Layer
from .losses import compiled_loss
from .module import inputs_for
from .working import Working


@dataclass
class KerasPruneResult(PruneResult):
    """See `secateurs.PruneResult`; `model` is a Keras model."""

    def _write(self, directory: Path, **options: Any) -> Path:
        return save(self.model, self.plan, directory, history=self.history, **options)

    def _bytes(self) -> int:
        return size_in_bytes(Working(self.model))


def prune(
    model: Layer,
    x: Any,
    y: Any = None,
    *,
    budget: Mapping[str, float],
    sample_weight: Any = None,
    batch_size: int = 32,
    example_inputs: Any = None,
    loss: Any = None,
    criterion: str | Criterion = "taylor",
    finetune: Mapping[str, Any] | None = None,
    validation_data: Any = None,
    evaluate: Callable[[Layer], float] | None = None,
    metric: str = "",
    mode: Mode | None = None,
    callbacks: Sequence[Callable[[dict[str, Any], Layer], None]] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> KerasPruneResult:
    """See `secateurs.prune`, with data and fine-tuning as Keras has them.

    Args:
        model: trained and compiled; it is left untouched.
        x, y, sample_weight, batch_size: as for `score`.
        example_inputs: only where the model does not know the shape of its inputs.
        loss: what the units are scored by, in the forms that `compile` takes; by default the
            compiled one. Weights are updated with the compiled one in any case.
        finetune: arguments of `fit`: epochs of the last fine-tuning, steps_per_epoch,
            class_weight, callbacks, verbose, validation_data. After each removal `updates` batches
            are fitted.
        validation_data: (x, y), (x, y, weights) or a data set, on which the model's own `evaluate`
            gives the metric after every step.
        evaluate: evaluate(model) -> the metric, in its place.
        metric, mode: which of those that the model is compiled with, by default its loss; and
            whether more ('max') or less ('min') is better: less by default for 'loss' alone.
        budget, criterion, callbacks, out, resume, progress, options: as there.

    Raises:
        ConfigError: the model is not compiled, what it was compiled with cannot be carried over to
            a smaller model, or an option is wrong.
        SecateursError: as `secateurs.prune` does.
    """
    settings = {"verbose": "auto" if progress else 0, **(finetune or {})}
    train = batches(x, y, sample_weight, batch_size=batch_size, seed=None)
    told = judge(evaluate, validation_data, metric, mode, batch_size)
    run = GreedyRun(
        Working(model),
        inputs_for(model, example_inputs),
        budget,
        find_criterion(criterion),
        make_options(**in_updates(options, "final", final_updates(train, settings))),
        Hooks(
            compiled_loss(model, loss) if needs_loss(criterion) else None,
            None,
            told.evaluate,
            told.metric,
            told.mode,
            told_to(callbacks),
        ),
        out,
        resume=resume,
    )
    copy = cast(Working, run.model)
    if run.options.updates or run.options.final or run.options.warmup:
        check_compiled(model, copy.model)
    run.start(FitTrainer(copy, train, settings, run.options))
    found = run.go(progress=progress, way="to the budget")
    own = {field.name: getattr(found, field.name) for field in fields(found)}
    return KerasPruneResult(**{**own, "model": cast(Working, found.model).model})
