"""The public verbs, for both kinds of model.

A Keras model goes to the verb of the same name in `keras/`.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from . import gates
from .errors import ConfigError
from .files import pt2, store, to_onnx
from .oracle import oracle as _oracle
from .score import score as _score
from .sparse import csr
from .surgery.apply import apply as _apply
from .surgery.bake import bake as _bake
from .surgery.delete import delete_channels as _delete_channels

F = TypeVar("F", bound=Callable[..., Any])


def is_keras(model: object) -> bool:
    """Whether this is a Keras model; Keras is not imported to find out."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


def for_keras_too(verb: F) -> F:
    """The verb, which hands a Keras model on.

    Raises:
        ConfigError: there is no such verb for Keras models yet.
    """

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not is_keras(args[0] if args else kwargs.get("model")):
            return verb(*args, **kwargs)
        room = importlib.import_module(".keras", __package__)
        own = room.__dict__.get(verb.__name__)
        if own is None:
            raise ConfigError(f"{verb.__name__} does not take Keras models yet")
        return own(*args, **kwargs)

    return run  # type: ignore[return-value]


trace = for_keras_too(gates.trace)
verify = for_keras_too(gates.verify)
apply = for_keras_too(_apply)
delete_channels = for_keras_too(_delete_channels)
bake = for_keras_too(_bake)
score = for_keras_too(_score)
oracle = for_keras_too(_oracle)
save = for_keras_too(store.save)
export_onnx = for_keras_too(to_onnx.export_onnx)
export_pt2 = for_keras_too(pt2.export_pt2)
to_csr = for_keras_too(csr.to_csr)


@for_keras_too
def delete_layer(model: Any, layer: Any) -> Any:
    """A Keras model without one of its layers, whose input passes in its place.

    Args:
        model: a Keras model made of layers by calls; models inside it count. It is left untouched.
        layer: the layer, its name, or its path where it lies in a model inside: 'encoder/conv2d'.
            A shared layer goes from every place where it is called.

    Returns:
        The new model, with the weights of the old.

    Raises:
        PlanError: there is no such layer, or it takes or gives several tensors.
        MendError: what comes after does not fit without it.
        ConfigError: the model is no Keras model; layers of others cannot be deleted yet.
    """
    raise _only_keras("delete_layer", model)


@for_keras_too
def insert_layer(model: Any, new: Any, *, before: Any = None, after: Any = None) -> Any:
    """A Keras model with a further layer before or after one of its own.

    Args:
        model: as for `delete_layer`.
        new: the layer to put in; it becomes part of the new model as it is.
        before, after: the layer before or after which it goes, as for `delete_layer`.

    Returns:
        The new model, with the weights of the old.

    Raises:
        PlanError: there is no such layer, or not one place is named.
        MendError: what comes after does not fit.
        ConfigError: the model is no Keras model.
    """
    raise _only_keras("insert_layer", model)


@for_keras_too
def replace_layer(model: Any, layer: Any, new: Any) -> Any:
    """A Keras model with another layer in the place of one of its own.

    Args:
        model: as for `delete_layer`.
        layer: the layer that goes.
        new: the layer that takes its place, and is called with what that was called with.

    Returns:
        The new model, with the weights of the old.

    Raises:
        PlanError: there is no such layer.
        MendError: what comes after does not fit.
        ConfigError: the model is no Keras model.
    """
    raise _only_keras("replace_layer", model)


def _only_keras(verb: str, model: object) -> ConfigError:
    return ConfigError(f"{verb} takes Keras models only, and this is {type(model).__name__}")
