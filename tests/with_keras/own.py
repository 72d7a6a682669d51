"""Layers and models of a user, in a module that a second process can import."""

from __future__ import annotations

import importlib
from typing import Any

import keras
from keras import layers as L


@keras.saving.register_keras_serializable("tests")
class Gated(L.Layer):
    """Two projections of one width, multiplied."""

    def __init__(self, width: int, out: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.width, self.out = width, out
        self.up, self.gate, self.down = L.Dense(width), L.Dense(width), L.Dense(out)

    def build(self, shape: Any) -> None:
        self.up.build(shape)
        self.gate.build(shape)
        self.down.build((*shape[:-1], self.width))

    def call(self, x: Any) -> Any:
        return self.down(self.up(x) * self.gate(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "out": self.out}


@keras.saving.register_keras_serializable("tests")
class Mute(Gated):
    """The same, with sizes that its configuration does not say."""

    def __init__(self, **kwargs: Any):
        super().__init__(6, 5, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    """A model with code of its own."""

    def __init__(self, width: int = 6, **kwargs: Any):
        super().__init__(**kwargs)
        self.width = width
        self.hidden, self.head = L.Dense(width, activation="relu"), L.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(self.hidden(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("tests")
class Wide(Own):
    """A model of one width whatever its configuration says."""

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


@keras.saving.register_keras_serializable("tests")
class Native(L.Layer):
    """A layer that computes with TensorFlow, whatever the backend."""

    def call(self, x: Any) -> Any:
        out = importlib.import_module("tensorflow").nn.relu(x)
        return keras.ops.convert_to_tensor(out)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape
