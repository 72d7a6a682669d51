"""Score, ask the oracle and prune with Keras models, as a Keras user does."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch.utils.data import DataLoader, TensorDataset

import secateurs as sc
from secateurs.errors import ConfigError, DataError
from secateurs.keras import PruneCallback
from secateurs.keras.data import Weighted, batches
from secateurs.keras.fit import FitTrainer
from secateurs.keras.losses import compiled_loss
from secateurs.keras.module import as_tensor
from secateurs.keras.working import Working
from secateurs.process.options import Training

from .models import drawn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6, 6, 2)).astype("float32")
Y = (X.mean((1, 2))[:, 0] > 0).astype("int64") + (X.mean((1, 2))[:, 1] > 0)


def network(loss: Any = None, **kwargs: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            L.Conv2D(5, 3, activation="relu", name="first"),
            L.BatchNormalization(name="norm"),
            L.Dropout(0.3),
            L.Conv2D(4, 3, activation="relu", name="second"),
            L.Flatten(),
            L.Dense(3, name="head"),
        ]
    )
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss or logits, metrics=["accuracy"], **kwargs)
    return drawn(model)


def mean_loss(model: Any, x: Any = X, y: Any = Y, **kwargs: Any) -> float:
    return float(model.evaluate(x, y, verbose=0, return_dict=True, **kwargs)["loss"])


def without(model: Any, layer: str, unit: int) -> Any:
    """The model with what one layer reads of a unit multiplied by zero, by hand."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(loss=model.loss)
    kernel = np.array(keras.ops.convert_to_numpy(copy.get_layer(layer).kernel))
    kernel[..., unit, :] = 0
    copy.get_layer(layer).kernel.assign(kernel)
    return copy


def test_the_oracle_is_what_evaluate_says_without_each_unit() -> None:
    model = network()
    found = sc.oracle(model, sc.trace(model), X, Y, metric="sparse_categorical_accuracy")
    assert found.base["loss"] == pytest.approx(mean_loss(model), rel=1e-5)
    assert found.base["metric"] == pytest.approx(model.evaluate(X, Y, verbose=0)[1])
    for unit, change in enumerate(found.loss["first"]):
        cut = mean_loss(without(model, "second", unit))
        assert change == pytest.approx(cut - mean_loss(model), rel=1e-3, abs=1e-5)


def test_taylor_is_the_derivative_by_a_gate_put_in_by_hand() -> None:
    model, step, positions = network(), 1e-3, 16
    kernel = model.get_layer("second").kernel
    whole = np.array(keras.ops.convert_to_numpy(kernel))

    def losses(unit: int, gate: float) -> Any:
        gated = whole.copy()
        gated[..., unit, :] *= gate
        kernel.assign(gated)
        z = keras.ops.convert_to_numpy(model(X, training=False)).astype("float64")
        return np.log(np.exp(z).sum(1)) - z[np.arange(len(Y)), Y]

    expected = []
    for unit in range(5):
        slopes = (losses(unit, 1 + step) - losses(unit, 1 - step)) / (2 * step)
        expected.append(np.abs(slopes / positions).mean())
    kernel.assign(whole)
    scores = sc.score(model, sc.trace(model), X, Y)
    np.testing.assert_allclose(scores["first"], expected, rtol=5e-3, atol=1e-6)


def test_obd_is_the_second_derivative_worked_out_by_hand() -> None:
    """½ dᵀ(diag p − p pᵀ)d, where d is what a unit of the last convolution adds to the logits."""
    model = network()
    body = keras.Model(model.inputs, model.get_layer("second").output)
    maps = keras.ops.convert_to_numpy(body(X, training=False)).astype("float64")
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in model.get_layer("head").weights)
    d = np.einsum("npu,puk->nuk", maps.reshape(48, 4, 4), kernel.reshape(4, 4, 3))
    p = np.exp(d.sum(1) + bias)
    p /= p.sum(1, keepdims=True)
    bends = np.einsum("nuk,nk->nu", d**2, p) - np.einsum("nuk,nk->nu", d, p) ** 2
    scores = sc.score(model, sc.trace(model), X, Y, criterion="obd")
    np.testing.assert_allclose(scores["second"], bends.mean(0) / 2, rtol=1e-4)


def test_data_may_come_in_any_form_of_fit() -> None:
    model, graph = network(), sc.trace(network())

    class Indexed(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            rows = slice(16 * index, 16 * index + 16)
            return X[rows], Y[rows]

    loader = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=16)
    listed = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)]
    wanted = sc.score(model, graph, X, Y, batch_size=16)
    for data in (Indexed(), loader, listed):
        found = sc.score(model, graph, data)
        assert found.examples == 48
        np.testing.assert_allclose(found["first"], wanted["first"], rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), Y),
        (keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), np.eye(3)[Y]),
        (keras.losses.CategoricalHinge(reduction="sum"), np.eye(3)[Y]),
        ("mse", np.eye(3)[Y]),
        (lambda y_true, y_pred: keras.ops.sum(abs(y_pred - y_true), -1), np.eye(3)[Y]),
    ],
)
def test_a_loss_keeps_the_conventions_of_keras(loss: Any, y: Any) -> None:
    model = network(loss)
    weights = RNG.uniform(0.5, 2, 48).astype("float32")
    rows = compiled_loss(model)
    output = as_tensor(model(X, training=False))
    for weight in (None, weights):
        target = torch.tensor(y) if weight is None else _weighted(y, weight)
        found = rows(output, target)
        assert found.shape == (48,)
        whole = mean_loss(model, X, y, sample_weight=weight, batch_size=48)
        mean = found.sum() if getattr(loss, "reduction", "") == "sum" else found.mean()
        assert float(mean.detach()) == pytest.approx(whole, rel=1e-5)


def _weighted(y: Any, weight: Any) -> Any:
    return Weighted(torch.tensor(y), torch.tensor(weight))


def test_several_outputs_have_losses_and_weights_of_their_own() -> None:
    x = keras.Input((6, 6, 2))
    h = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu", name="conv")(x))
    heads = [L.Dense(3, name="kind")(h), L.Dense(1, activation="sigmoid", name="sign")(h)]
    model = drawn(keras.Model(x, heads))
    losses = {
        "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "sign": "binary_crossentropy",
    }
    model.compile("sgd", losses, loss_weights={"kind": 1.0, "sign": 0.25})
    y = [Y, (Y > 0).astype("float32")[:, None]]
    found = sc.oracle(model, sc.trace(model), X, y)
    assert found.base["loss"] == pytest.approx(mean_loss(model, X, y), rel=1e-5)
    assert sc.score(model, sc.trace(model), X, y)["conv"].shape == (4,)


def prune(model: Any, **options: Any) -> Any:
    given = {"budget": {"macs": 0.6}, "updates": 2, "step": 0.23, "progress": False, **options}
    return sc.prune(model, X, Y, **{"finetune": {"epochs": 1}, **given})


def test_a_model_is_pruned_to_its_budget_with_its_own_fit(tmp_path: Path) -> None:
    model = network()
    before = [w.copy() for w in model.get_weights()]
    epochs: list[int] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    result = prune(
        model,
        validation_data=(X, Y),
        metric="accuracy",
        finetune={"epochs": 2, "callbacks": [watch]},
    )
    assert result.stopped == "budget"
    # positions · kernel · channels, of one example
    assert result.before["macs"] == 16 * 9 * 2 * 5 + 4 * 9 * 5 * 4 + 16 * 3
    assert result.after["macs"] <= 0.6 * result.before["macs"]
    assert result.proof.holds
    assert epochs[-2:] == [0, 1]  # the last fine-tuning
    assert len(epochs) == 2 + len(result.history) - 2
    assert result.history[-1]["metric"] == pytest.approx(
        result.model.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"]
    )
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    result.save(tmp_path)
    result.report(tmp_path / "report.html")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), result.model.predict(X, verbose=0))
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    optimizer = config["compile_config"]["optimizer"]
    assert (optimizer["module"], optimizer["class_name"]) == ("keras.optimizers", "Adam")
    assert sc.Plan.load(tmp_path / "plan.json") == result.plan
    other = drawn(sc.apply(model, result.plan), seed=1)  # the negative control
    assert not sc.verify(model, other, result.plan).holds


def test_ctrl_c_loses_nothing_and_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    whole = prune(network())

    def interrupt(record: dict[str, Any], model: Any) -> None:
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    first = prune(network(), out=tmp_path, callbacks=[interrupt])
    assert first.stopped == "interrupted"
    assert 0 < len(first.plan) < len(whole.plan)
    with pytest.raises(ConfigError, match="resume=True"):
        prune(network(), out=tmp_path)
    again = prune(network(), out=tmp_path, resume=True)
    assert again.stopped == "budget"
    assert again.plan == whole.plan
    for one, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        again.model.optimizer.variables, whole.model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        )


def test_every_batch_is_used_once_though_keras_looks_ahead() -> None:
    data = batches(X, Y, batch_size=16)  # three of them
    trainer = FitTrainer(Working(network()), data, {"verbose": 0}, Training())
    trainer.train(4, lambda: True)
    assert trainer.stream.place == (1, 1)
    more = iter([True, False])
    trainer.train(5, lambda: next(more))
    assert trainer.stream.place == (1, 3)
    trainer.train(3, lambda: True)
    assert trainer.stream.place == (2, 3)


def test_a_loss_that_is_not_a_number_keeps_the_last_good_state() -> None:
    model = network()
    model.optimizer.learning_rate = 1e30
    result = prune(model)
    assert result.stopped == "nan"
    assert all(np.isfinite(w).all() for w in result.model.get_weights())


def test_what_cannot_be_done_is_refused_with_a_way_out(tmp_path: Path) -> None:
    model = network()
    bare = keras.Sequential(
        [keras.Input((6, 6, 2)), L.Dense(5, name="first"), L.Flatten(), L.Dense(3)]
    )
    with pytest.raises(DataError, match="compiled with no loss"):
        sc.score(bare, sc.trace(bare), X, Y)
    assert sc.score(bare, sc.trace(bare), criterion="l2")["first"].shape == (5,)
    with pytest.raises(ConfigError, match="compile it first"):
        sc.prune(bare, X, Y, budget={"macs": 0.5}, criterion="l2", progress=False)
    with pytest.raises(DataError, match="loss of PyTorch"):
        sc.score(model, sc.trace(model), X, Y, loss=torch.nn.CrossEntropyLoss())
    with pytest.raises(DataError, match="different numbers of examples: 47, 48"):
        sc.score(model, sc.trace(model), X, Y[1:])
    with pytest.raises(ConfigError, match="fine-tuned as it is compiled"):
        prune(model, lr=0.1)
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        prune(model, finetune={"epoch": 1})
    with (
        pytest.raises(ConfigError, match="register_keras_serializable"),
        pytest.warns(UserWarning, match="cannot be stored"),
    ):
        prune(network(lambda y_true, y_pred: keras.ops.abs(y_pred - y_true)))
    with pytest.raises(ConfigError, match="dense"):
        sc.save(model, None, tmp_path, sparse=True)


def test_a_callback_gates_while_the_user_trains_and_cuts_at_the_end() -> None:
    model = network()
    callback = PruneCallback(X, Y, budget={"macs": 0.6}, epochs=2)
    seen: list[list[int]] = []

    def look(epoch: int, logs: Any) -> None:
        kernel = keras.ops.convert_to_numpy(model.get_layer("second").kernel)
        seen.append([u for u in range(5) if not kernel[:, :, u].any()])

    watch = keras.callbacks.LambdaCallback(on_epoch_end=look)
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[callback, watch])
    assert callback.proof.holds
    assert len(seen[1]) > len(seen[0]) or len(callback.plan) > len(seen[0])
    assert seen[2] == seen[1] == sorted(callback.plan.groups.get("first", []))
    np.testing.assert_allclose(
        callback.pruned.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-4, atol=1e-5
    )
    assert callback.pruned.get_layer("first").filters == 5 - len(seen[2])
    callback.pruned.fit(X, Y, verbose=0)


def test_criteria_are_compared_with_updates_by_fit(tmp_path: Path) -> None:
    found = sc.compare(
        network(),
        X,
        Y,
        criteria=["l2"],
        validation_data=(X, Y),
        metric="accuracy",
        budgets=[0.6],
        seeds=[0],
        forms=["fine-tuned"],
        updates=2,
        sensitivity=[],
        progress=False,
        out=tmp_path,
    )
    cuts = [line for line in found.lines if line.kind == "prune"]
    assert [line.form for line in cuts] == ["fine-tuned"]
    assert found.setting.metric_name == "accuracy"
    assert all(0 <= line.metric <= 1 for line in cuts)
    [group] = sc.sensitivity(
        network(), X, Y, criterion="l2", only="first", fractions=[0.4], progress=False
    ).sensitivities()
    assert [removed for removed, loss in group.points] == [0.0, 0.4]
    with pytest.raises(ConfigError, match="in this process"):
        sc.compare(network(), X, Y, engine="processes")
