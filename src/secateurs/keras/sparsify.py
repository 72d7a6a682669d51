"""Prune single weights of a Keras model: the loop of `process`, with updates by `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import keras
from torch import Tensor

from ..errors import ConfigError
from ..process.options import SparsifyOptions, validated
from ..process.run import Hooks
from ..process.sparsify import SparsifyRun
from ..process.sparsify_result import SparsifyResult
from ..sparse.masks import Masks
from ..sparse.saliency import GaussNewton, Saliency, find_saliency
from ..sparse.targets import Sparsity, Target
from .carry import native
from .data import batches
from .files import save
from .fit import check_compiled, final_updates, in_updates
from .judging import Mode, judge, told_to
from .layers import Layer, variables_of
from .losses import compiled_loss
from .masked import MaskedTrainer
from .module import inputs_for
from .working import Working, copied


@dataclass
class KerasSparsifyResult(SparsifyResult):
    """See `secateurs.SparsifyResult`; `model` is a Keras model."""

    def unbaked(self) -> Layer:
        """See `secateurs.SparsifyResult.unbaked`."""
        model = copied(self.model)
        own = variables_of(model)
        for name, tensor in self.dense.items():
            own[name].assign(native(tensor))
        return model

    def save(self, directory: str | Path, *, sparse: bool = False, values: str = "exact") -> Path:
        """Write `model.keras`, whose zeros tell what is gone, and the history.

        Raises:
            ConfigError: a sparse file is asked for, which Keras could not read.
            FileError: a file cannot be written; the old one stays.
        """
        return save(self.model, None, directory, history=self.history, sparse=sparse, values=values)


def sparsify(
    model: Layer,
    x: Any,
    y: Any = None,
    *,
    compression: float | None = None,
    sparsity: Sparsity | None = None,
    pattern: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    sample_weight: Any = None,
    batch_size: int = 32,
    example_inputs: Any = None,
    loss: Any = None,
    saliency: str | Saliency | Callable[[Tensor, Tensor], Tensor] = "magnitude",
    masks: Masks | None = None,
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
) -> KerasSparsifyResult:
    """See `secateurs.sparsify`, with data and training as Keras has them.

    All updates are those of `fit`, with the optimizer, loss and metrics that the model is compiled
    with. In the model are w⊙T for the time of an update, and wherever a callback of yours looks;
    all of w is kept beside it. Penalties and decay of weights act on w⊙T.

    Args:
        model: trained and compiled; it is left untouched.
        x, y, sample_weight, batch_size: as for `score`.
        example_inputs: only where the model does not know the shape of its inputs.
        loss: what a saliency by the loss is taken from; by default the compiled one.
        finetune: arguments of `fit`: epochs, in place of `updates`, steps_per_epoch, class_weight,
            callbacks, verbose, validation_data.
        validation_data, evaluate, metric, mode: as for `prune`; every `evaluate_every` updates, by
            default once in an epoch where `finetune` says epochs.
        compression, sparsity, pattern, thresholds, saliency, masks, callbacks, out, resume,
            progress, options: as there; masks are named like the variables, 'conv2d/kernel'.

    Raises:
        ConfigError: the model is not compiled, or not so that it can be masked between updates; or
            an option is wrong.
        SecateursError: as `secateurs.sparsify` does.
    """
    settings = {"verbose": "auto" if progress else 0, **(finetune or {})}
    train = batches(x, y, sample_weight, batch_size=batch_size, seed=None)
    told = judge(evaluate, validation_data, metric, mode, batch_size)
    judged = find_saliency(saliency)
    _check_saliency(judged)
    run = SparsifyRun(
        Working(model),
        inputs_for(model, example_inputs),
        Target(compression, sparsity, pattern, thresholds),
        judged,
        validated(SparsifyOptions, _in_epochs(options, final_updates(train, settings), settings)),
        Hooks(
            compiled_loss(model, loss) if judged.needs else None,
            None,
            told.evaluate,
            told.metric,
            told.mode,
            told_to(callbacks),
        ),
        out,
        resume=resume,
        masks=masks,
    )
    copy = cast(Working, run.model)
    check_compiled(model, copy.model)
    _check_optimizer(model)
    run.start(MaskedTrainer(copy, train, settings, run.options, lambda: run.masks))
    found = run.go(progress=progress, way="of the updates")
    own = {field.name: getattr(found, field.name) for field in fields(found)}
    return KerasSparsifyResult(**{**own, "model": cast(Working, found.model).model})


def _in_epochs(
    options: Mapping[str, Any], updates: int | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The options in updates; one evaluation in an epoch where epochs are asked for."""
    given = in_updates(options, "updates", updates)
    if updates:
        given.setdefault("evaluate_every", updates // int(settings["epochs"]))
    return given


def _check_saliency(saliency: Saliency) -> None:
    """Refuse a saliency that this backend cannot take.

    Raises:
        ConfigError: it maps the network over its examples, which a recording cannot follow.
    """
    if isinstance(saliency, GaussNewton) and keras.backend.backend() != "torch":
        raise ConfigError(
            f"saliency {saliency.name!r} runs the network on each example by itself, which a "
            f"recording made for {keras.backend.backend()} does not; take 'obd'"
        )


def _check_optimizer(model: Layer) -> None:
    """Refuse an optimizer that writes other weights than its steps lead to.

    Raises:
        ConfigError: it averages them.
    """
    if model.optimizer.use_ema:
        raise ConfigError(
            f"the model {model.name!r} is compiled with an optimizer that averages weights "
            "(use_ema), and masked weights have no such average; compile it without"
        )
