"""What a model that is built anew takes over from the old one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import torch

from ..slices import Slices
from .layers import Layer, Variable, is_graph, weights_of
from .module import as_tensor
from .rebuild import Rebuilt


def carry(
    old: Layer,
    rebuilt: Rebuilt,
    values: Mapping[int, torch.Tensor],
    slots: Mapping[int, Slices],
) -> Layer:
    """Give a new model weights, trainable flags, compiled state and the optimizer's slots.

    Args:
        old: the model as it was.
        rebuilt: the model built anew.
        values: id of an old variable -> its new value; the others keep theirs.
        slots: id of an old variable -> what it lost, and its slots lose too.

    Warns:
        UserWarning: the compiled state cannot be carried over.
    """
    pairs: list[tuple[Variable, Variable]] = []
    for layer in _walk(old):
        if id(layer) in rebuilt.new and not is_graph(layer):
            pairs += zip(weights_of(layer), weights_of(rebuilt.new[id(layer)]), strict=True)
    for before, after in pairs:
        value = values.get(id(before))
        after.assign(native(as_tensor(before) if value is None else value))
    _set_trainable(old, rebuilt.model, rebuilt.new)
    for before, after in pairs:
        if after.trainable != before.trainable:
            after.trainable = before.trainable
    if old.compiled and _compile(old, rebuilt.model):
        _carry_slots(old.optimizer, rebuilt.model.optimizer, pairs, slots)
    return rebuilt.model


def _walk(layer: Layer) -> list[Layer]:
    inner = layer.layers if is_graph(layer) else []
    return [layer, *(leaf for own in inner for leaf in _walk(own))]


def native(tensor: torch.Tensor) -> Any:
    """A tensor as the backend takes it."""
    tensor = tensor.detach()
    if keras.backend.backend() == "torch":
        return tensor
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _set_trainable(old: Layer, new: Layer, known: Mapping[int, Layer]) -> None:
    """From the outside in: to set the flag of a model sets it in all its layers."""
    if new.trainable != old.trainable:
        new.trainable = old.trainable
    for inner in old.layers if is_graph(old) else ():
        if id(inner) in known and isinstance(inner, keras.Layer):
            _set_trainable(inner, known[id(inner)], known)


def _compile(old: Layer, new: Layer) -> bool:
    try:
        new.compile_from_config(old.get_compile_config())
    except Exception as error:  # noqa: BLE001 - code of the user runs here
        first = str(error).strip().splitlines()[:1]
        warnings.warn(
            f"the new model is not compiled, for what the old one was compiled with cannot be "
            f"stored: {type(error).__name__}: {''.join(first)}; call compile() on it",
            stacklevel=4,
        )
        return False
    return bool(new.compiled)


def _carry_slots(
    old: Any,
    new: Any,
    pairs: list[tuple[Variable, Variable]],
    slots: Mapping[int, Slices],
) -> None:
    """Copy an optimizer's variables; those that go with a weight lose what it lost."""
    if not (old.built and new.built) or len(old.variables) != len(new.variables):
        new.iterations.assign(native(as_tensor(old.iterations)))  # read from .h5, it has no slots
        return
    kept = {id(after): slots.get(id(before)) for before, after in pairs}
    names = {after.path.replace("/", "_"): kept.get(id(after)) for _, after in pairs}
    longest = sorted(names, key=len, reverse=True)
    for before, after in zip(old.variables, new.variables, strict=True):
        value = as_tensor(before)
        owner = next((name for name in longest if f"{name}_" in f"{after.name}_"), None)
        lost = names[owner] if owner is not None else None
        if lost is not None and tuple(value.shape) == lost.shape:
            value = lost.cut(value)
        if tuple(value.shape) == tuple(after.shape):
            after.assign(native(value))
