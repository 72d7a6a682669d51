"""Keras models of every form: what is traced, and what a cut keeps of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from tests.with_keras.models import IMAGES, chain, drawn, output, residual
from tests.with_keras.own import Gated, Mute, Own

import secateurs as sc
from secateurs.errors import ConfigError, MendError, PlanError, TraceError
from secateurs.groups import Graph
from secateurs.keras.module import inputs_for
from secateurs.keras.recorded import Recorder, _kept, program_of, recorded_by_child
from secateurs.trace.analyse import Analysis


def test_groups_name_the_variables() -> None:
    graph = sc.trace(residual())
    assert [(g.name, g.kind, g.size) for g in graph] == [
        ("stem", "channel", 8),
        ("inner", "channel", 6),
    ]
    stem, inner = graph
    assert {str(axis) for axis in stem.writes} == {"stem/kernel[3]", "outer/kernel[3]"}
    assert [str(axis) for axis in stem.reads] == ["inner/kernel[2]", "head/kernel[0] ×25"]
    assert "norm/moving_mean[0]" in {str(axis) for axis in stem.carries}
    assert [str(axis) for axis in inner.axes] == ["inner/kernel[3]", "outer/kernel[2]"]
    reasons = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    assert reasons["head/kernel", 1] == "output of the network"
    assert reasons["stem/kernel", 0] == "kernel axis"


@pytest.mark.smoke
def test_a_kernel_is_cut_where_a_hand_would_cut_it() -> None:
    model = residual()
    small = sc.delete_channels(model, {"inner": [1, 4]})
    kept = [0, 2, 3, 5]
    for name, index in {
        "stem/kernel": (...,),
        "inner/kernel": (..., kept),
        "outer/kernel": (slice(None), slice(None), kept),
        "outer/bias": (...,),
    }.items():
        layer, own = name.split("/")
        before, after = (
            keras.ops.convert_to_numpy(getattr(m.get_layer(layer), own)) for m in (model, small)
        )
        np.testing.assert_array_equal(after, before[index])


@pytest.mark.smoke
def test_a_rebuild_that_changes_nothing_is_the_same_to_the_bit() -> None:
    model = residual()
    same = sc.apply(model, sc.trace(model).plan({}))
    assert same is not model
    assert [v.path for v in same.weights] == [v.path for v in model.weights]
    np.testing.assert_array_equal(output(same), output(model))


def test_the_model_is_left_as_it_was_and_never_cut_in_place() -> None:
    model = residual()
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.weights]
    config, result = model.get_config(), output(model)
    plan = sc.trace(model).random_plan(0.5)
    sc.apply(model, plan)
    assert model.get_config() == config
    for old, now in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(now))
    np.testing.assert_array_equal(output(model), result)
    with pytest.raises(PlanError, match="in place"):
        sc.apply(model, plan, inplace=True)


def test_plans_are_data_and_compose() -> None:
    model = residual()
    first = sc.trace(model).plan({"stem": [0, 3], "inner": [5]})
    assert sc.Plan.from_json(first.to_json()) == first
    half = sc.apply(model, first)
    second = sc.trace(half).plan({"stem": [1], "inner": [0, 1]})
    small, at_once = sc.apply(half, second), sc.apply(model, first.then(second))
    np.testing.assert_array_equal(output(small), output(at_once))
    with pytest.raises(PlanError, match="it has been cut already"):
        sc.apply(half, first)


def test_the_saved_file_loads_without_secateurs(tmp_path: Path) -> None:
    small = sc.delete_channels(residual(), {"stem": [0, 1], "inner": [2]})
    small.save(tmp_path / "small.keras")
    np.save(tmp_path / "x.npy", IMAGES)
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model('small.keras')\n"
        "np.save('y.npy', keras.ops.convert_to_numpy(model(np.load('x.npy'), training=False)))\n"
        "assert 'secateurs' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), output(small), rtol=1e-5, atol=1e-6)


def two_towers() -> Any:
    """One shared layer, a model inside, two inputs and two outputs."""
    shared = L.Dense(8, activation="relu", name="shared")
    inside = keras.Input((6,))
    encoder = keras.Model(inside, L.Dense(6, name="out")(L.Dense(5, name="hidden")(inside)))
    encoder.name = "encoder"
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    pair = [L.Dense(6, name="down")(shared(x)) for x in (left,)] + [
        L.Dense(6, name="other")(shared(right))
    ]
    joined = L.Concatenate(name="join")([encoder(x) for x in pair])
    outputs = {"a": L.Dense(2, name="a")(joined), "b": L.Dense(3, name="b")(pair[0])}
    return drawn(keras.Model({"left": left, "right": right}, outputs))


@pytest.mark.smoke
def test_shared_layers_and_models_inside() -> None:
    model = two_towers()
    graph = sc.trace(model)
    assert {g.name for g in graph} >= {"shared", "down", "encoder/hidden", "encoder/out"}
    plan = graph.random_plan(0.4)
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, graph=graph).holds
    assert len([layer for layer in small.layers if layer.name == "shared"]) == 1
    assert list(small.input) == ["left", "right"]
    assert list(small.output) == ["a", "b"]
    assert small.get_layer("encoder").get_layer("hidden").units < 5


@pytest.mark.smoke
def test_flags_compiled_state_and_slots_are_carried_over() -> None:
    model = residual()
    model.get_layer("norm").trainable = False
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(IMAGES, np.ones((3, 3)), verbose=0)
    graph = sc.trace(model)
    plan = graph.plan({"inner": [0, 3]})
    small = sc.apply(model, plan)
    assert [layer.trainable for layer in small.layers] == [x.trainable for x in model.layers]
    assert [v.path for v in small.trainable_weights] == [v.path for v in model.trainable_weights]
    assert type(small.optimizer) is type(model.optimizer)
    slots = {v.path: keras.ops.convert_to_numpy(v) for v in model.optimizer.variables}
    kept, cut = [1, 2, 4, 5], 0
    for variable in small.optimizer.variables:
        value = keras.ops.convert_to_numpy(variable)
        before = slots[variable.path]
        if before.shape != value.shape:
            cut += 1
            before = before[..., kept] if "inner" in variable.path else before[:, :, kept]
        np.testing.assert_array_equal(value, before)
    assert cut == 4  # two moments of two kernels
    assert small.fit(IMAGES, np.ones((3, 3)), verbose=0).history["loss"][0] > 0


def test_what_cannot_be_compiled_anew_is_said() -> None:
    model = residual()
    model.compile("sgd", loss=lambda wanted, given: keras.ops.mean((wanted - given) ** 2))
    with pytest.warns(UserWarning, match="not compiled"):
        small = sc.delete_channels(model, {"inner": [0]})
    assert not small.compiled


@pytest.mark.smoke
def test_a_layer_of_the_user_is_cut_by_its_configuration() -> None:
    model = chain((4,), L.Dense(6, name="first"), Gated(6, 5, name="own"), L.Dense(2))
    graph = sc.trace(model)
    assert sorted(g.size for g in graph) == [5, 6, 6]
    inner = next(g for g in graph if g.name.startswith("own/") and g.size == 6)
    small = sc.delete_channels(model, {inner.name: [0, 5]})
    assert (small.get_layer("own").width, small.get_layer("own").out) == (4, 5)


def test_a_layer_that_does_not_say_its_sizes_is_frozen_with_the_reason() -> None:
    graph = sc.trace(chain((4,), L.Dense(6), Mute(name="own"), L.Dense(2)))
    assert all("own/" not in axis.tensor or axis.dim == 0 for g in graph for axis in g.writes)
    assert any("get_config must say" in f.reason for f in graph.frozen)


class Nowhere(L.Dense):
    """A layer that no other process can import."""

    def __init__(self, **kwargs: Any):
        super().__init__(2, **kwargs)


Nowhere.__module__ = "nowhere"


def test_a_child_process_records_the_same() -> None:
    model = two_towers()
    inputs = inputs_for(model)
    graph = Graph(Analysis(recorded_by_child(model, inputs)), rebuilt=True)
    here = Graph(Analysis(program_of(model, inputs)), rebuilt=True)
    assert graph.records() == here.records()
    plan = graph.random_plan(0.4)
    assert sc.verify(model, sc.apply(model, plan), plan, inputs, graph=graph).holds
    with pytest.raises(TraceError, match="does not run on the torch backend"):
        recorded_by_child(chain((4,), Nowhere()), inputs)


def test_a_process_that_ended_is_said_and_started_anew(tmp_path: Path) -> None:
    model = chain((4,), L.Dense(6, name="a"), L.Dense(2))
    recorder = Recorder()
    recorder._process.kill()
    with pytest.raises(TraceError, match="ended"):
        recorder.record(tmp_path, [], {})
    assert not recorder.end.alive
    _kept().end()
    assert recorded_by_child(model, inputs_for(model)).tensors.keys() >= {"a/kernel", "a/bias"}


def test_a_model_with_code_of_its_own() -> None:
    model, x = Own(), np.ones((2, 4), "float32")
    with pytest.raises(TraceError, match="pass example_inputs"):
        sc.trace(model)
    model(x)
    drawn(model)
    (group,) = sc.trace(model, x).groups
    small = sc.delete_channels(model, {group.name: [2]}, x)
    assert type(small) is Own
    assert small.width == 5


def test_other_verbs_refuse_keras_models() -> None:
    model = residual()
    with pytest.raises(ConfigError, match="does not take Keras models yet"):
        sc.to_csr(model)
    with pytest.raises(ConfigError, match="takes Keras models only"):
        sc.delete_layer(torch.nn.Sequential(), "0")


def test_an_impossible_edit_changes_nothing() -> None:
    model = residual()
    with pytest.raises(MendError):
        sc.delete_layer(model, "inner")
    with pytest.raises(PlanError, match="did you mean 'inner'"):
        sc.delete_layer(model, "iner")
