"""Delete, insert and replace whole layers of Keras models."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from ..errors import PlanError, nearest
from .carry import carry
from .layers import Layer, is_graph
from .rebuild import Change, Place, Rebuilt


def delete_layer(model: Layer, layer: str | Layer) -> Layer:
    """See `secateurs.delete_layer`."""
    old = _find(model, layer)
    if len(keras.tree.flatten(old.output)) != 1:
        raise PlanError(f"the layer {old.name!r} gives several tensors; replace it instead")
    return _placed(model, old, Place(None))


def insert_layer(
    model: Layer,
    new: Layer,
    *,
    before: str | Layer | None = None,
    after: str | Layer | None = None,
) -> Layer:
    """See `secateurs.insert_layer`."""
    if (before is None) == (after is None):
        raise PlanError("say where the layer goes: before=… or after=…, and one of them only")
    old = _find(model, before if after is None else after)
    place = Place(old, before=(new,)) if after is None else Place(old, after=(new,))
    return _placed(model, old, place)


def replace_layer(model: Layer, layer: str | Layer, new: Layer) -> Layer:
    """See `secateurs.replace_layer`."""
    return _placed(model, _find(model, layer), Place(new))


def _placed(model: Layer, old: Layer, place: Place) -> Layer:
    return carry(model, Rebuilt(model, Change(places={id(old): place})), {}, {})


def _find(model: Layer, wanted: str | Layer) -> Layer:
    """The layer of this path, or of this name if there is one such; or the layer itself."""
    layers = list(_paths(model, ""))
    found = {
        id(layer): layer
        for path, layer in layers
        if wanted is layer or wanted in (path, layer.name)
    }
    exact = [layer for path, layer in layers if wanted == path]
    if exact or len(found) == 1:
        return (exact or list(found.values()))[0]
    name = wanted if isinstance(wanted, str) else wanted.name
    if found:
        paths = ", ".join(repr(path) for path, layer in layers if id(layer) in found)
        raise PlanError(f"several layers are called {name!r}: {paths}; name one of them")
    raise PlanError(
        f"the model has no layer {name!r} that it is built of by calls"
        f"{nearest(name, [path for path, _ in layers])}"
    )


def _paths(model: Layer, prefix: str) -> Iterator[tuple[str, Layer]]:
    """Every layer in which something can be put in place of another, models of layers too."""
    for layer in model.layers if is_graph(model) else ():
        if not isinstance(layer, keras.layers.InputLayer):
            yield f"{prefix}{layer.name}", layer
            yield from _paths(layer, f"{prefix}{layer.name}/")
