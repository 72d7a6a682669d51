"""Score the units of a Keras model, and ask the oracle."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from ..criteria import Criterion
from ..errors import DataError, nearest
from ..groups import Graph
from ..oracle import oracle as oracle_of_module
from ..oracle_result import Oracle
from ..score import needs_loss
from ..score import score as score_module
from ..scores import Scores
from .data import batches as batches_of
from .layers import Layer
from .losses import compiled_loss
from .working import Working


def score(
    model: Layer,
    graph: Graph,
    data: Any = None,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int = 32,
    loss: Any = None,
    criterion: str | Criterion = "taylor",
    batches: int | None = None,
    seed: int = 0,
) -> Scores:
    """See `secateurs.score`, with data and loss as Keras has them.

    Args:
        model, graph, criterion, batches, seed: as there.
        data: what `fit` takes: arrays, or a data set of (x, y) or (x, y, weight).
        y, sample_weight, batch_size: of arrays.
        loss: what `compile` takes; by default what the model is compiled with.
    """
    source = None
    if data is not None:
        source = batches_of(data, y, sample_weight, batch_size=batch_size, seed=seed)
    return score_module(
        Working(model),
        graph,
        source,
        loss=compiled_loss(model, loss) if needs_loss(criterion) else None,
        criterion=criterion,
        batches=batches,
        seed=seed,
    )


def oracle(
    model: Layer,
    graph: Graph,
    data: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int = 32,
    loss: Any = None,
    metric: Any = None,
    seed: int = 0,
    **options: Any,
) -> Oracle:
    """See `secateurs.oracle`, with data and loss as Keras has them.

    Args:
        model, graph: as there.
        data, y, sample_weight, batch_size, loss: as for `score`.
        metric: a function (y_true, y_pred) -> one value per example, or the name of one in
            `keras.metrics`, such as 'sparse_categorical_accuracy'.
        seed: of the order of arrays, and of the draw of examples.
        **options: others of `secateurs.oracle`.
    """
    return oracle_of_module(
        Working(model),
        graph,
        batches_of(data, y, sample_weight, batch_size=batch_size, seed=seed),
        loss=compiled_loss(model, loss),
        metric=None if metric is None else compiled_loss(model, _function(metric)),
        seed=seed,
        **options,
    )


def _function(metric: Any) -> Any:
    """A metric that gives one value per example, from its name."""
    if not isinstance(metric, str):
        return metric
    known = {name: one for name, one in vars(keras.metrics).items() if inspect.isfunction(one)}
    if metric not in known:
        raise DataError(f"keras.metrics has no function {metric!r}{nearest(metric, known)}")
    return known[metric]
