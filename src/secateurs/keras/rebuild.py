"""Build a Keras model anew, layer by layer, with other shapes and with other layers.

Each level is walked by `clone_model`, whose call function puts a new layer where an old one stood.
Only public functions of Keras are used, so this runs on every backend.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras

from ..errors import MendError, PlanError, SecateursError
from .layers import Layer, inputs_of, is_graph, layers_of, weights_of
from .search import edited, located

Shapes: TypeAlias = Mapping[int, tuple[int, ...]]  # id of a variable -> its new shape

_TRIALS = 200
_GONE = object()  # in place of a tensor that the change leaves nothing of


@dataclass(frozen=True)
class Place:
    """What stands where a layer stood: the same or another or none, between others.

    Layers that are put in are called as they are; the old layer is built anew.
    """

    layer: Layer | None
    before: tuple[Layer, ...] = ()
    after: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Change:
    """What a model is to become.

    Attributes:
        shapes: id of a variable -> its new shape; the others keep theirs.
        sizes: (before, after) of every size that changes.
        attributes: path of a layer -> its attributes -> (before, after), as far as they are known.
        places: id of a layer -> what stands in its place.
    """

    shapes: Shapes = field(default_factory=dict)
    sizes: frozenset[tuple[int, int]] = frozenset()
    attributes: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    places: Mapping[int, Place] = field(default_factory=dict)


class Rebuilt:
    """A model built anew, with weights not yet assigned.

    Attributes:
        model: the new model.
        new: id of an old layer -> the new one.

    Raises:
        MendError: a layer cannot be built with the shapes that it needs.
        PlanError: layers cannot be put or left out there.
    """

    def __init__(self, model: Layer, change: Change):
        self.change = change
        self.new: dict[int, Layer] = {}
        self.paths = {id(layer): path for path, layer in layers_of(model).items()}
        try:
            self.model = self._level(model, None) if is_graph(model) else self._alone(model)
        except SecateursError:
            raise
        except Exception as error:
            raise MendError(f"the model cannot be built anew: {_first_line(error)}") from error

    # ------------------------------------------------------------------ a model of layers
    def _level(self, model: Layer, inputs: Sequence[Any] | None) -> Layer:
        """A model of layers on symbolic inputs like these, or like its own."""
        structure = inputs_of(model)
        own = keras.tree.flatten(structure)
        given = own if inputs is None else inputs
        fresh = [
            keras.Input(batch_shape=new.shape, dtype=new.dtype, name=old.name)
            for old, new in zip(own, given, strict=True)
        ]
        if isinstance(model, keras.Sequential):
            return self._sequence(model, *fresh)
        plain = keras.Model(structure, model.output, name=model.name)  # the graph, not compiled
        clone = keras.models.clone_model(
            plain,
            input_tensors=keras.tree.pack_sequence_as(structure, fresh),
            clone_function=lambda layer: layer,
            call_function=self._call,
        )
        if type(model) is type(plain):
            return clone
        return type(model)(clone.input, clone.output, name=model.name)

    def _sequence(self, model: Layer, x: Any) -> Layer:
        stack = [x]
        for old in model.layers:
            x = self._call(old, x)
            place = self._place(old)
            kept = self.new[id(old)] if place.layer is old else place.layer
            stack += [*place.before, *([] if kept is None else [kept]), *place.after]
        return type(model)(stack, name=model.name)

    def _place(self, old: Layer) -> Place:
        return self.change.places.get(id(old), Place(old))

    def _call(self, old: Layer, *args: Any, **kwargs: Any) -> Any:
        """Call what stands in the place of an old layer."""
        if self._goes(old, args, kwargs):
            return _GONE
        if isinstance(old, keras.layers.Concatenate):
            args = tuple([x for x in arg if x is not _GONE] for arg in args)
        place = self._place(old)
        for layer in place.before:
            args = (layer(args[0]), *args[1:])
        if place.layer is None:
            out = _only(old, args, kwargs)
        else:
            new = self._renewed(old, args, kwargs) if place.layer is old else place.layer
            out = new(*args, **kwargs)
        for layer in place.after:
            out = layer(out)
        return out

    def _goes(self, old: Layer, args: Any, kwargs: Any) -> bool:
        """Whether nothing is left of what a layer gives.

        Raises:
            MendError: something is, and nothing is left of what it takes.
        """
        weights = weights_of(old)
        if weights and all(0 in self.change.shapes.get(id(v), ()) for v in weights):
            return True
        gone = [x is _GONE for x in keras.tree.flatten([args, kwargs])]
        if not any(gone) or (isinstance(old, keras.layers.Concatenate) and not all(gone)):
            return False
        passed = keras.tree.flatten([args, kwargs])
        if weights or any(keras.utils.is_keras_tensor(x) for x in passed):
            raise MendError(f"nothing reaches the layer {old.name!r} any more; delete it first")
        return True

    def _renewed(self, old: Layer, args: Any, kwargs: Any) -> Layer:
        """The new layer for an old one; a shared layer stays shared."""
        if id(old) not in self.new:
            if is_graph(old):
                self.new[id(old)] = self._level(old, keras.tree.flatten(args[0]))
            else:
                self.new[id(old)] = self._single(
                    old, lambda new: new(*_like(args), **_like(kwargs))
                )
        return self.new[id(old)]

    # ------------------------------------------------------------------ one layer
    def _alone(self, model: Layer) -> Layer:
        """A model with code of its own, built by its own configuration."""
        build = model.get_build_config() or {}
        new = self._single(model, lambda new: new.build_from_config(build))
        new.build_from_config(build)
        self.new[id(model)] = new
        return new

    def _single(self, old: Layer, build: Callable[[Layer], Any]) -> Layer:
        """A new layer like an old one, whose weights get the wanted shapes when it is built."""
        config = old.get_config()
        path = self.paths.get(id(old), old.name) or "model"
        known = located(config, self.change.attributes.get(path, {}))
        near = _near(old, self.change.shapes)
        sizes = [*near, *sorted(self.change.sizes), *_open(old, self.change.shapes)]
        return _fitting(old, self.change.shapes, edited(config, known, sizes), [build])


# ---------------------------------------------------------------------- one layer
def buildable(layer: Layer, shapes: Shapes) -> None:
    """Refuse shapes that a layer made of others, or one of a user, cannot be configured to have.

    Raises:
        MendError: it cannot.
    """
    inside = any("/" in v.path.removeprefix(f"{layer.path}/") for v in weights_of(layer))
    if not inside and type(layer).__module__.partition(".")[0] == "keras":
        return  # a plain layer of Keras has a number of its own for each of its sizes
    near = _near(layer, shapes)
    configs = edited(layer.get_config(), {}, [*near, *_open(layer, shapes)])
    builds = edited(layer.get_build_config() or {}, {}, near)
    _fitting(layer, shapes, configs, [functools.partial(_build, shapes=own) for own in builds])


def _build(new: Layer, shapes: dict[str, Any]) -> None:
    """Build a layer for inputs of these shapes, and see that it gives what it says that it gives.

    Raises:
        ValueError: it says another shape than it gives.
    """
    new.build_from_config(shapes)
    if isinstance(new, keras.layers.MultiHeadAttention):
        _attend(new, shapes["shapes_dict"])  # on JAX its sizes may have to agree
    shape = shapes.get("input_shape")
    if isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape):
        said = keras.tree.flatten(new(keras.Input(batch_shape=shape)))
        given = keras.tree.flatten(new(keras.ops.zeros([size or 2 for size in shape])))
        if [x.shape[1:] for x in said] != [tuple(x.shape)[1:] for x in given]:
            raise ValueError(f"it says that it gives {said[0].shape}, and gives {given[0].shape}")


def _attend(new: Layer, shapes: Mapping[str, Any]) -> None:
    """Call an attention on zeros of the shapes that it was built for."""
    new(
        **{
            name.removesuffix("_shape"): keras.ops.zeros([size or 2 for size in shape])
            for name, shape in shapes.items()
            if shape is not None
        }
    )


def _near(layer: Layer, shapes: Shapes) -> list[tuple[int, int]]:
    """(before, after) of the sizes of a layer's own weights."""
    changed = [v for v in weights_of(layer) if id(v) in shapes]
    return [pair for v in changed for pair in zip(tuple(v.shape), shapes[id(v)], strict=True)]


def _open(layer: Layer, shapes: Shapes) -> list[tuple[None, int]]:
    """What a shape may be that the layer was left to find."""
    wanted = [shapes.get(id(v), tuple(v.shape)) for v in weights_of(layer)]
    return [(None, size) for shape in wanted for size in shape[-1:]]


def _fitting(
    old: Layer,
    shapes: Shapes,
    configs: Iterable[dict[str, Any]],
    builds: Sequence[Callable[[Layer], Any]],
) -> Layer:
    """A new layer by the first configuration that gives it weights of these shapes."""
    wanted = [shapes.get(id(v), tuple(v.shape)) for v in weights_of(old)]
    why = ""
    for config, build in itertools.islice(itertools.product(configs, builds), _TRIALS):
        try:
            trial = type(old).from_config(copy.deepcopy(config))
            build(trial)
        except Exception as error:  # noqa: BLE001 - whatever it is, this is not the one
            why = why or f": {_first_line(error)}"
            continue
        if [tuple(v.shape) for v in weights_of(trial)] == wanted:
            return type(old).from_config(config)
    raise MendError(
        f"no configuration of the layer {old.name!r} ({type(old).__name__}) gives it what the "
        f"change needs{why}; its get_config must say the sizes that it is built with"
    )


def _only(old: Layer, args: Any, kwargs: Any) -> Any:
    """The one tensor that a layer takes, which passes in its place."""
    tensors = [x for x in keras.tree.flatten([args, kwargs]) if keras.utils.is_keras_tensor(x)]
    if len(tensors) != 1:
        raise PlanError(
            f"the layer {old.name!r} takes {len(tensors)} tensors, and which of them should pass "
            "in its place cannot be told; replace it by a layer that says so"
        )
    return tensors[0]


def _like(nest: Any) -> Any:
    """The same nest of arguments with new symbolic inputs in place of its tensors."""
    return keras.tree.map_structure(
        lambda x: (
            keras.Input(batch_shape=x.shape, dtype=x.dtype) if keras.utils.is_keras_tensor(x) else x
        ),
        nest,
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
