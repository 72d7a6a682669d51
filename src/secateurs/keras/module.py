"""A Keras model as a torch module whose tensors go by the names of the Keras variables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from ..errors import TraceError
from .layers import Layer, inputs_of, layers_of, variables_of


class Module(nn.Module):
    """What the rest of the library needs of a Keras model: its tensors by name, and its outputs.

    On the torch backend the tensors are those of the model itself; elsewhere they are copies.

    Args:
        model: any Keras model.
        names: of its variables, in their order; those of `variables_of` if left out.
    """

    def __init__(self, model: Layer, names: Iterable[str] | None = None):
        super().__init__()
        self.stand_for(model, names)

    def stand_for(self, model: Layer, names: Iterable[str] | None = None) -> None:
        """Take up the tensors of a model: of another one, or as they are now."""
        self._parameters.clear()
        self._modules.clear()
        own = variables_of(model)
        for name, variable in zip(own if names is None else names, own.values(), strict=True):
            self._parameters[name] = as_tensor(variable)
        if keras.backend.backend() == "torch":
            for path, layer in layers_of(model).items():
                self._modules[path or "model"] = layer
        self.__dict__["model"] = model  # its tensors are known by the names above

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs as torch tensors; several inputs are one list or one dict, as in Keras."""
        inputs = kwargs or (args[0] if len(args) == 1 else list(args))
        if any(torch.is_tensor(leaf) and leaf.is_meta for leaf in keras.tree.flatten(inputs)):
            raise TraceError("Keras puts tensors that have no values on a device of its own")
        if keras.backend.backend() != "torch":
            inputs = keras.tree.map_structure(keras.ops.convert_to_numpy, inputs)
        outputs = self.__dict__["model"](inputs, training=False)
        return keras.tree.map_structure(as_tensor, outputs)


def as_tensor(value: Any) -> Any:
    """A variable or a tensor of any backend as a torch tensor; on the torch backend, itself."""
    if isinstance(value, keras.Variable):
        value = value.value
    if value is None or torch.is_tensor(value):
        return value
    array = keras.ops.convert_to_numpy(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array))  # a copy: what a backend gives may be read-only


def inputs_for(model: Layer, example_inputs: Any = None) -> Any:
    """What `Module` is called with: the given inputs as torch tensors, or random ones.

    Raises:
        TraceError: the model does not say the shape of its inputs.
    """
    if example_inputs is None:
        example_inputs = _drawn(model)
    inputs = keras.tree.map_structure(as_input, example_inputs)
    return tuple(inputs) if isinstance(inputs, list) else inputs


def as_input(value: Any) -> torch.Tensor:
    if torch.is_tensor(value):
        return value
    array = np.asarray(value)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def _drawn(model: Layer) -> Any:
    try:
        structure = inputs_of(model)
    except (AttributeError, ValueError) as error:
        raise TraceError(
            f"the model {model.name!r} does not know the shape of its inputs; pass example_inputs"
        ) from error
    generator = np.random.default_rng(0)

    def draw(symbolic: Any) -> torch.Tensor:
        batch, *rest = symbolic.shape
        if None in rest:
            raise TraceError(
                f"an input of the model {model.name!r} has the shape {symbolic.shape}; "
                "pass example_inputs"
            )
        shape = (batch or 1, *rest)
        whole = "int" in symbolic.dtype or symbolic.dtype == "bool"
        drawn: Any = generator.integers(0, 2, shape) if whole else generator.normal(size=shape)
        return as_tensor(keras.ops.convert_to_tensor(drawn, dtype=symbolic.dtype))

    return keras.tree.map_structure(draw, structure)
