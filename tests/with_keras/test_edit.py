"""Whole layers deleted, inserted and replaced, against what a hand would build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from tests.with_keras.models import chain, drawn, functional, output

import secateurs as sc
from secateurs.errors import PlanError

X = np.random.default_rng(2).normal(size=(3, 4)).astype("float32")


def dense(x: Any, layer: Any) -> Any:
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in layer.weights)
    return x @ kernel + bias


def square_chain() -> Any:
    return chain((4,), *(L.Dense(4, name=name) for name in "abc"))


@pytest.mark.parametrize("name", list("abc"))
def test_delete_in_a_chain(name: str) -> None:
    model = square_chain()
    small = sc.delete_layer(model, name)
    wanted = X
    for other in "abc".replace(name, ""):
        wanted = dense(wanted, model.get_layer(other))
    assert isinstance(small, keras.Sequential)
    assert [layer.name for layer in small.layers] == list("abc".replace(name, ""))
    np.testing.assert_allclose(output(small, X), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["before", "after"])
def test_insert_in_a_chain(where: str) -> None:
    model, new = square_chain(), L.Dense(4, name="new")
    larger = sc.insert_layer(model, new, **{where: "b"})
    drawn(keras.Sequential([new]), seed=3)
    order = "a new b c" if where == "before" else "a b new c"
    assert [layer.name for layer in larger.layers] == order.split()
    wanted = X
    for name in order.split():
        wanted = dense(wanted, larger.get_layer(name))
    np.testing.assert_allclose(output(larger, X), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.smoke
def test_replace_in_a_chain() -> None:
    model = square_chain()
    other = sc.replace_layer(model, model.get_layer("b"), L.Activation("tanh", name="t"))
    wanted = dense(np.tanh(dense(X, model.get_layer("a"))), model.get_layer("c"))
    np.testing.assert_allclose(output(other, X), wanted, rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in model.layers] == list("abc")


def shared() -> Any:
    def body(x: Any) -> Any:
        twice = L.Dense(4, name="twice")
        inner = keras.Sequential([keras.Input((4,)), L.Dense(4, name="in")], name="inner")
        return L.Add(name="add")([twice(x), inner(twice(twice(x)))])

    return functional((4,), body)


Verb = Callable[[Any, str], Any]
# each verb on a layer, and what then comes of an input and what the layer made of it
VERBS: dict[str, tuple[Verb, Callable[[Any, Any], Any]]] = {
    "delete": (sc.delete_layer, lambda x, _: x),
    "insert": (
        lambda model, name: sc.insert_layer(model, L.Activation("tanh", name="t"), after=name),
        lambda _, made: np.tanh(made),
    ),
    "replace": (
        lambda model, name: sc.replace_layer(model, name, L.Activation("tanh", name="t")),
        lambda x, _: np.tanh(x),
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_shared_layer_changes_at_every_call(verb: str) -> None:
    model, (edit, then) = shared(), VERBS[verb]
    twice, inside = model.get_layer("twice"), model.get_layer("inner").get_layer("in")

    def now(x: Any) -> Any:
        return then(x, dense(x, twice))

    wanted = now(X) + dense(now(now(X)), inside)
    np.testing.assert_allclose(output(edit(model, "twice"), X), wanted, rtol=1e-4, atol=1e-5)


def test_in_a_model_inside() -> None:
    model = shared()
    small = sc.insert_layer(model, L.Activation("tanh"), after="inner/in")
    twice, inside = model.get_layer("twice"), model.get_layer("inner").get_layer("in")
    wanted = dense(X, twice) + np.tanh(dense(dense(dense(X, twice), twice), inside))
    np.testing.assert_allclose(output(small, X), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("verb", VERBS)
def test_upstream_of_two_outputs(verb: str) -> None:
    def body(x: Any) -> Any:
        x = L.Dense(4, name="both")(x)
        return [L.Dense(2, name="left")(x), L.Dense(3, name="right")(x)]

    model, (edit, then) = functional((4,), body), VERBS[verb]
    left, right = edit(model, "both")(X)
    for given, name in ((left, "left"), (right, "right")):
        wanted = dense(then(X, dense(X, model.get_layer("both"))), model.get_layer(name))
        given = keras.ops.convert_to_numpy(given)
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)


def test_what_takes_several_tensors_is_not_deleted() -> None:
    with pytest.raises(PlanError, match="takes 2 tensors"):
        sc.delete_layer(shared(), "add")
    with pytest.raises(PlanError, match=r"before=… or after=…"):
        sc.insert_layer(shared(), L.ReLU(), before="add", after="twice")
