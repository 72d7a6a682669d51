"""The loss of a compiled model as the criteria and the oracle ask for it: one value per example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import keras
from torch import Tensor, nn

from ..errors import DataError
from .data import Weighted
from .layers import Layer
from .native import Native


def compiled_loss(model: Layer, loss: Any = None) -> Callable[[Any, Any], Tensor]:
    """loss(output, target) -> (examples,), from what `compile` takes.

    Args:
        model: its outputs are named as `compile` names them.
        loss: a name, a function (y_true, y_pred), an object of `keras.losses`, or a list or dict of
            them for several outputs; by default what the model was compiled with, its weights of
            outputs too. Penalties on weights and activations are no part of it.

    Raises:
        DataError: there is no loss.
    """
    weights: Any = None
    if loss is None:
        if not model.compiled or model.loss is None:
            raise DataError(
                f"the model {model.name!r} is compiled with no loss: compile it, or pass loss=…"
            )
        loss = model.loss
        weights = (model.get_compile_config() or {}).get("loss_weights")
    return PerExample(loss, weights, list(getattr(model, "output_names", [])))


class PerExample:
    """The sum over the outputs of their losses, each weighted, for each example.

    As in Keras, y and the weights of examples have the structure of the outputs; one loss serves
    all outputs, and an output whose loss is None counts for nothing.
    """

    def __init__(self, loss: Any, weights: Any, names: list[str]):
        self._loss, self._weights, self._names = loss, weights, names
        self.__qualname__ = str(getattr(loss, "name", getattr(loss, "__name__", loss)))

    def __call__(self, output: Any, target: Any) -> Tensor:
        outputs = self._listed(output, None)
        if keras.backend.backend() == "torch":
            return self._rows(outputs, target)
        own = keras.tree.map_structure(
            lambda leaf: keras.ops.convert_to_tensor(leaf.cpu().numpy()), target
        )
        return Native.apply(lambda native: self._rows(native, own), *outputs)

    def _rows(self, outputs: list[Any], target: Any) -> Any:
        """The same of tensors of the backend."""
        y, weight = target if isinstance(target, Weighted) else (target, None)
        parts = (
            self._listed(y, outputs) if len(outputs) > 1 else keras.tree.flatten(y),
            self._listed(weight, outputs),
            self._listed(self._loss, outputs),
            self._listed(self._weights, outputs),
        )
        total: Any = 0.0
        for out, true, own, loss, factor in zip(outputs, *parts, strict=True):
            if loss is not None:
                total = total + (1.0 if factor is None else factor) * _rows(loss, out, true, own)
        return total

    def _listed(self, nest: Any, outputs: list[Any] | None) -> list[Any]:
        """What there is for each output, in their order."""
        if isinstance(nest, Mapping):
            names = self._names if set(self._names) >= set(nest) else sorted(nest)
            return [nest.get(name) for name in names]
        if isinstance(nest, (list, tuple)):
            return list(nest)
        return [nest] * (1 if outputs is None else len(outputs))


def _rows(loss: Any, output: Any, y: Any, weight: Any) -> Any:
    """The loss of one output for each example, (examples,)."""
    values = _unreduced(loss)(y, output, sample_weight=weight)
    rows = keras.ops.reshape(values, (len(output), -1))
    whole = keras.ops.sum if _reduction(loss) == "sum" else keras.ops.mean
    return whole(rows, axis=1)


def _reduction(loss: Any) -> Any:
    return loss.reduction if isinstance(loss, keras.Loss) else None


def _unreduced(loss: Any) -> keras.Loss:
    """A loss that leaves its values as they are."""
    if isinstance(loss, nn.Module):
        raise DataError(
            f"{type(loss).__name__} is a loss of PyTorch; for a Keras model it is what compile() "
            "takes: a name, an object of keras.losses, or a function (y_true, y_pred)"
        )
    found = keras.losses.get(loss)
    if isinstance(found, keras.Loss):
        found = copy.copy(found)
        found.reduction = None
        return found
    return _Function(found)


class _Function(keras.Loss):
    """A plain function (y_true, y_pred) as a loss."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        super().__init__(reduction=None)
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """See `keras.Loss.call`; one of the two may have a last axis of one more, as in Keras."""
        if len(y_true.shape) == len(y_pred.shape) + 1 and y_true.shape[-1] == 1:
            y_true = keras.ops.squeeze(y_true, -1)
        elif len(y_pred.shape) == len(y_true.shape) + 1 and y_pred.shape[-1] == 1:
            y_true = keras.ops.expand_dims(y_true, -1)
        return self._function(y_true, y_pred)
