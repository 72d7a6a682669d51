"""Compare criteria on a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..compare.comparison import Comparison
from ..compare.run import compare as compare_module
from ..criteria import Criterion
from ..errors import ConfigError
from ..process.options import Training
from ..process.stream import Stream
from .data import batches
from .fit import FitTrainer
from .judging import Mode, judge
from .layers import Layer
from .losses import compiled_loss
from .module import inputs_for
from .working import Working


def compare(
    model: Layer,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int = 32,
    example_inputs: Any = None,
    loss: Any = None,
    criteria: Literal["all"] | Sequence[str | Criterion] = "all",
    finetune: Mapping[str, Any] | None = None,
    validation_data: Any = None,
    evaluate: Callable[[Layer], float] | None = None,
    metric: str = "",
    mode: Mode | None = None,
    engine: Any = None,
    **options: Any,
) -> Comparison:
    """See `secateurs.compare`, with data and fine-tuning as Keras has them.

    Args:
        model, x, y, sample_weight, batch_size, example_inputs, loss, validation_data, evaluate,
            metric, mode: as for `prune`.
        criteria: as there.
        finetune: arguments of `fit`, such as class_weight; how many updates is an option of
            `secateurs.compare`.
        engine: None only: all runs in this process.
        **options: others of `secateurs.compare`, such as preset, seeds, updates or out.

    Raises:
        ConfigError: another engine is asked for, or an option is wrong.
        SecateursError: as `secateurs.compare` does.
    """
    if engine is not None:
        raise ConfigError("a comparison of Keras models runs in this process: leave engine out")
    train = batches(x, y, sample_weight, batch_size=batch_size, seed=None)
    told = judge(evaluate, validation_data, metric, mode, batch_size)
    return compare_module(
        Working(model),
        inputs_for(model, example_inputs),
        data=train,
        loss=compiled_loss(model, loss),
        criteria=criteria,
        evaluate=told.evaluate,
        metric=told.metric,
        mode=told.mode,
        finetune=_Fit(train, {"verbose": 0, **(finetune or {})}),
        **options,
    )


class _Fit:
    """finetune(model, updates) by `fit`; a model goes on in the data where it was left."""

    def __init__(self, data: Iterable[Any], settings: Mapping[str, Any]):
        self._data, self._settings = data, settings
        self._streams: WeakKeyDictionary[Working, Stream] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, updates: int) -> None:
        model = cast(Working, model)
        seed = torch.initial_seed() % (1 << 62)  # of the experiment; no draw so far changes it
        trainer = FitTrainer(model, self._data, self._settings, Training(seed=seed))
        trainer.stream = self._streams.setdefault(model, trainer.stream)
        trainer.train(updates, lambda: True)


def sensitivity(
    model: Layer,
    x: Any,
    y: Any = None,
    *,
    criterion: str | Criterion = "taylor",
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9),
    **settings: Any,
) -> Comparison:
    """See `secateurs.sensitivity`.

    Args:
        model, x, y: as for `compare`.
        criterion, fractions: as there.
        **settings: others of `compare`, such as loss or validation_data.
    """
    fixed = {"forms": (), "oracle": False, "sensitivity": tuple(fractions)}
    return compare(model, x, y, criteria=[criterion], **{"seeds": (0,), **settings, **fixed})
