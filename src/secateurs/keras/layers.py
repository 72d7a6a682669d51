"""The layers and the variables of a Keras model, by path."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import keras

Layer: TypeAlias = Any  # Keras has no types to be checked against
Variable: TypeAlias = Any


def is_graph(layer: Layer) -> bool:
    """Whether a layer is a model made of others by calls that Keras knows: it can be walked."""
    if isinstance(layer, keras.Sequential):
        return True
    if not (isinstance(layer, keras.Model) and isinstance(layer, keras.Function)):
        return False
    parameters = inspect.signature(type(layer)).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return list(parameters)[:2] == ["inputs", "outputs"] or (
        kinds >= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    )


def inputs_of(model: Layer) -> Any:
    """The symbolic inputs of a model of layers, as it takes them.

    Raises:
        AttributeError, ValueError: it is no such model, or was not built yet.
    """
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def weights_of(layer: Layer) -> list[Variable]:
    """The weights of a layer; a bare operation has none."""
    return list(layer.weights) if isinstance(layer, keras.Layer) else []


def layers_of(model: Layer) -> dict[str, Layer]:
    """Every layer that is no graph of others, by path: 'conv2d', 'encoder/conv2d'.

    A shared one goes by its first path; a model that is no graph is one layer, under ''.
    """
    return dict(_walk(model, "", set()))


def _walk(layer: Layer, path: str, seen: set[int]) -> Iterator[tuple[str, Layer]]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if not is_graph(layer):
        yield path, layer
        return
    for inner in layer.layers:
        yield from _walk(inner, f"{path}/{inner.name}" if path else inner.name, seen)


def variables_of(model: Layer) -> dict[str, Variable]:
    """Every weight of a model, by the path of its layer and its own: 'conv2d/kernel'.

    Where a layer has several of one path, the later ones are numbered: 'layer/dense#2/kernel'.
    """
    out: dict[str, Variable] = {}
    seen: set[int] = set()
    for path, layer in layers_of(model).items():
        for variable in weights_of(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                own = variable.path.removeprefix(f"{layer.path}/")
                out[_free(f"{path}/{own}" if path else own, out)] = variable
    return out


def _free(name: str, taken: Mapping[str, object]) -> str:
    layer, _, own = name.rpartition("/")
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{layer}#{count}/{own}"
    return free
