"""Keras networks for the tests, with weights that hide nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L

IMAGES = np.random.default_rng(1).normal(size=(3, 5, 5, 2)).astype("float32")


def output(model: Any, inputs: Any = IMAGES) -> Any:
    """What the model gives, as an array."""
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def drawn(model: Any, seed: int = 0) -> Any:
    """The model with weights drawn anew, variances above zero."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        positive = "variance" in weight.path
        low, high = (0.5, 1.5) if positive else (-0.5, 0.5)
        weight.assign(rng.uniform(low, high, weight.shape))
    return model


def functional(shape: tuple[int, ...], body: Callable[[Any], Any], **kwargs: Any) -> Any:
    """A network of one input: `body` gives the outputs from it."""
    inputs = keras.Input(shape, **kwargs)
    return drawn(keras.Model(inputs, body(inputs)))


def chain(shape: tuple[int, ...], *layers: Any, dtype: str = "float32") -> Any:
    """The layers one after the other, as a Sequential."""
    return drawn(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def residual() -> Any:
    """Two convolutions around an addition, then a classifier."""

    def body(x: Any) -> Any:
        x = L.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
        y = L.BatchNormalization(name="norm")(x)
        y = L.Conv2D(6, 3, padding="same", use_bias=False, name="inner")(y)
        y = L.Conv2D(8, 1, name="outer")(y)
        x = L.Add()([x, y])
        x = L.Flatten()(x)
        return L.Dense(3, name="head")(x)

    return functional((5, 5, 2), body)
