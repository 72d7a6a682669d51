"""What goes wrong in silence when Keras models are edited by hand, one test for each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from tests.with_keras.models import IMAGES, chain, drawn, functional, output, residual
from tests.with_keras.own import Native, Wide

import secateurs as sc
from secateurs.errors import MendError, TraceError
from secateurs.keras.module import inputs_for
from secateurs.keras.recorded import recorded_by_child
from secateurs.plan import Plan
from secateurs.slices import Slices

TOKENS = np.random.default_rng(5).normal(size=(2, 5, 4)).astype("float32")


def wrapped() -> Any:
    """Layers whose configuration holds the shapes for which others inside were built."""
    return chain(
        (5, 4),
        L.TimeDistributed(L.Dense(6, name="inner"), name="each"),
        L.Bidirectional(L.LSTM(5, return_sequences=True), name="both"),
        L.SpectralNormalization(L.Dense(7), name="normal"),
        L.Dense(2, name="head"),
    )


def test_shapes_that_a_configuration_was_built_for_do_not_come_back(tmp_path: Path) -> None:
    model = wrapped()
    graph = sc.trace(model)
    small = sc.apply(model, graph.random_plan(0.4))
    assert small.count_params() < model.count_params()
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert [tuple(v.shape) for v in again.weights] == [tuple(v.shape) for v in small.weights]
    np.testing.assert_array_equal(output(again, TOKENS), output(small, TOKENS))


def test_the_target_of_a_reshape_is_that_of_the_trace(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        x = L.Conv2D(6, 3, name="conv")(x)
        return L.Dense(2)(L.Reshape((3, 18), name="flat")(x))

    model = functional((5, 5, 2), body)
    small = sc.delete_channels(model, {"conv": [0, 3]})
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert again.get_layer("flat").target_shape == (3, 12)


def test_a_model_that_would_come_back_at_its_old_width_is_refused() -> None:
    model, x = Wide(), TOKENS[0]
    model(x)
    graph = sc.trace(drawn(model), x)
    assert not graph.groups
    assert any("get_config must say" in frozen.reason for frozen in graph.frozen)
    name = next(frozen.tensor for frozen in graph.frozen if frozen.tensor.endswith("bias"))
    by_hand = Plan({}, {}, {name: Slices((6,), {0: [[1, 4]]})})
    with pytest.raises(MendError, match="get_config must say"):
        sc.apply(model, by_hand)
    assert model(x).shape == (5, 2)


def test_a_lambda_in_a_file_is_not_run() -> None:
    model = chain((4,), L.Dense(6, name="a"), L.Lambda(lambda x: 2 * x), L.Dense(2))
    with pytest.raises(TraceError, match="lambda"):
        recorded_by_child(model, inputs_for(model))
    with pytest.raises((MendError, TraceError), match="lambda"):
        sc.delete_channels(model, {"a": [0]})


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="it does not run there")
def test_a_layer_of_one_backend_is_refused() -> None:
    pytest.importorskip("tensorflow")
    model = chain((4,), L.Dense(6, name="a"), Native(), L.Dense(2))
    with pytest.raises(TraceError, match=r"with keras\.ops"):
        sc.trace(model)


def test_a_loss_and_the_moments_survive_an_h5_file(tmp_path: Path) -> None:
    model = residual()
    model.compile("adam", keras.losses.MeanSquaredError())
    model.fit(IMAGES, np.ones((3, 3)), verbose=0)
    model.save(tmp_path / "old.h5")
    old = keras.models.load_model(tmp_path / "old.h5", compile=False)
    small = sc.delete_channels(old, {"inner": [0]})
    assert not small.compiled
    old = keras.models.load_model(tmp_path / "old.h5")
    small = sc.delete_channels(old, {"inner": [0]})
    assert isinstance(small.loss, keras.losses.MeanSquaredError)
    assert int(small.optimizer.iterations) == int(old.optimizer.iterations)
    assert small.fit(IMAGES, np.ones((3, 3)), verbose=0).history["loss"][0] > 0


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_an_optimizer_of_one_backend_is_none_of_another(backend: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    model = residual()
    model.compile("adam", "mse")
    model.fit(IMAGES, np.ones((3, 3)), verbose=0)
    small = sc.delete_channels(model, {"inner": [0]})
    sc.save(small, None, tmp_path)
    np.save(tmp_path / "x.npy", IMAGES)
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "x = np.load('x.npy')\n"
        "np.save('y.npy', keras.ops.convert_to_numpy(model(x, training=False)))\n"
        "assert int(model.optimizer.iterations) == 1\n"
        "model.fit(x, np.ones((3, 3)), verbose=0)\n"
        "assert 'secateurs' not in sys.modules\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), output(small), rtol=1e-4, atol=1e-5)
