"""What is cut around a concatenation and at shared layers, against NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from tests.with_keras.models import functional, output

import secateurs as sc
from secateurs.errors import PlanError

X = np.random.default_rng(3).normal(size=(3, 4)).astype("float32")


def weights(model: Any, name: str) -> list[Any]:
    return [keras.ops.convert_to_numpy(v) for v in model.get_layer(name).weights]


def dense(x: Any, model: Any, name: str) -> Any:
    kernel, bias = weights(model, name)
    return x @ kernel + bias


def branches() -> Any:
    def body(x: Any) -> Any:
        left = L.Dense(5, activation="relu", name="left")(x)
        right = L.Dense(6, name="before")(x)
        right = L.ReLU()(L.Dense(3, name="right")(right))
        return L.Dense(2, name="head")(L.Concatenate(name="join")([left, right]))

    return functional((4,), body)


def by_hand(model: Any, left: list[int], right: list[int]) -> Any:
    """The outputs with some units of the two branches multiplied by zero."""
    a = np.maximum(dense(X, model, "left"), 0)
    b = np.maximum(dense(dense(X, model, "before"), model, "right"), 0)
    a[:, left], b[:, right] = 0, 0
    return dense(np.concatenate([a, b], 1), model, "head")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("left", "right"), [([1, 4], []), ([], [0]), ([0], [1, 2])], ids=["left", "right", "both"]
)
def test_each_side_of_a_concatenation(left: list[int], right: list[int]) -> None:
    model = branches()
    small = sc.delete_channels(model, {"left": left, "right": right})
    rows = [i for i in range(8) if i not in left and i - 5 not in right]
    np.testing.assert_array_equal(weights(small, "head")[0], weights(model, "head")[0][rows])
    np.testing.assert_allclose(output(small, X), by_hand(model, left, right), rtol=1e-4, atol=1e-5)


def test_a_branch_that_goes_whole() -> None:
    model = branches()
    small = sc.delete_channels(model, {"right": range(3)})
    assert not {"before", "right", "re_lu"} & {layer.name for layer in small.layers}
    np.testing.assert_array_equal(weights(small, "head")[0], weights(model, "head")[0][:5])
    wanted = by_hand(model, [], [0, 1, 2])
    np.testing.assert_allclose(output(small, X), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(PlanError, match="nothing would pass"):
        sc.delete_channels(model, {"left": range(5), "right": range(3)})


def test_a_bias_that_nothing_reaches_is_no_branch() -> None:
    model = branches()
    with pytest.raises(PlanError, match="nothing would pass"):
        sc.delete_channels(model, {"before": range(6)})


def test_unequal_cuts_into_one_shared_layer_are_one_group() -> None:
    def body(x: Any) -> Any:
        shared = L.Dense(3, name="shared")
        one, other = L.Dense(6, name="one")(x), L.Dense(6, name="other")(x)
        return L.Add()([shared(one), shared(other)])

    graph = sc.trace(functional((4,), body))
    assert graph["one"] is graph["other"]
    with pytest.raises(PlanError, match="twice"):
        graph.plan({"one": [0], "other": [0]})
    with pytest.raises(PlanError, match="twice"):
        graph.plan({"one": [0, 1], "other": [1, 2]})
