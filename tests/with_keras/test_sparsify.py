"""Single weights of Keras models pruned and spliced, against NumPy."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import secateurs as sc
from secateurs.errors import BudgetError, ConfigError
from secateurs.keras.data import batches
from secateurs.keras.losses import compiled_loss
from secateurs.keras.masked import MaskedTrainer
from secateurs.keras.working import Working
from secateurs.process.options import Training
from secateurs.sparse.masks import Masks
from secateurs.sparse.saliency import find_saliency

from .models import chain, output
from .test_process import X, Y, mean_loss, network


def array(value: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(value))


def sparsify(model: Any, **options: Any) -> Any:
    given = {"updates": 6, "every": 2, "evaluate_every": 4, "progress": False, **options}
    return sc.sparsify(model, X, Y, batch_size=16, **given)


def bits(masks: Any, name: str) -> Any:
    return masks[name].cpu().numpy()


@pytest.mark.smoke
def test_an_update_goes_straight_through_to_what_is_gone() -> None:
    """W ← W − v, v ← 0.9 v + lr ∂L/∂(W⊙T), by hand, with masks that change on the way."""
    rng = np.random.default_rng(0)
    model = chain((4,), L.Dense(3, use_bias=False, name="a"))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (4, 3))
    drawn = [rng.random((4, 3)) < 0.5 for _ in range(5)]
    for kept in drawn:
        kept[0] = False
    dense, v = array(model.get_layer("a").kernel).astype("float64"), np.zeros((4, 3))
    start = dense.copy()
    for kept in drawn:
        error = x @ (dense * kept) - y
        v = 0.9 * v + 0.1 * x.T @ error * 2 / error.size
        dense = dense - v

    working, turn = Working(model), iter(drawn)
    masks = Masks.full(working)

    def each() -> bool:
        masks.set("a/kernel", torch.from_numpy(next(turn)))
        return True

    data = batches(x, y, batch_size=8)
    trainer = MaskedTrainer(working, data, {"verbose": 0}, Training(), lambda: masks)
    trainer.train(5, each)
    found = array(model.get_layer("a").kernel)
    np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-6)
    assert (found[0] != start[0]).all()  # though it was never kept


def test_a_compression_is_reached_and_what_is_gone_is_zero(tmp_path: Path) -> None:
    model = network()
    before, seen = [array(v) for v in model.weights], []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(int((array(kernel()) == 0).sum()))
    )

    def kernel() -> Any:
        return look.model.get_layer("second").kernel

    result = sparsify(
        model,
        compression=4,
        validation_data=(X, Y),
        metric="accuracy",
        finetune={"callbacks": [look]},
    )
    assert (result.stopped, result.history[-1]["update"]) == ("done", 6)
    assert set(result.masks) == {
        f"{layer}/{own}" for layer in ("first", "second", "head") for own in ("kernel", "bias")
    }
    assert model.count_params() / result.masks.kept >= 4
    kept = 0
    for variable in result.model.weights:
        layer, own = variable.path.rsplit("/", 1)
        name = f"{layer.rsplit('/', 1)[-1]}/{own}"
        if name in result.masks:
            np.testing.assert_array_equal(array(variable) != 0, bits(result.masks, name))
            kept += int((array(variable) != 0).sum())
        else:
            kept += int(np.prod(variable.shape))
    assert kept == result.masks.kept == result.history[-1]["kept"]
    assert len(seen) == 6
    assert seen[-1] == int((~bits(result.masks, "second/kernel")).sum())  # a callback sees w⊙T
    dense = result.unbaked()
    assert (array(dense.get_layer("second").kernel) != 0).all()
    assert result.history[-1]["metric"] == pytest.approx(
        result.model.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"]
    )
    for old, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, array(variable))
    result.save(tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(output(loaded, X), output(result.model, X), rtol=1e-5, atol=1e-6)
    assert "sparsified; stopped: done" in str(result)


def test_a_pattern_lies_along_what_a_weight_reads() -> None:
    model = chain((6, 6, 4), L.Conv2D(8, 3, name="conv"), L.Flatten(), L.Dense(3, name="head"))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.concatenate([X, X], -1)
    result = sc.sparsify(model, x, Y, pattern="2:4", updates=4, every=1, progress=False)
    conv, head = (array(result.model.get_layer(name).kernel) for name in ("conv", "head"))
    groups = [conv.transpose(0, 1, 3, 2).reshape(-1, 4), head.T.reshape(-1, 4)]
    assert [int((own != 0).sum(1).max()) for own in groups] == [2, 2]
    assert [int((own != 0).sum(1).min()) for own in groups] == [2, 2]
    with pytest.raises(BudgetError, match="no multiple of 7"):
        sc.sparsify(model, x, Y, pattern="2:7", updates=1, progress=False)


def test_thresholds_are_those_of_the_paper_and_other_layers_stay_whole() -> None:
    model, chosen = network(), {"first": 0.5, "head": -0.2}
    result = sparsify(model, thresholds=chosen, updates=1, every=1)  # one look, at the start
    assert set(result.masks) == {f"{layer}/{own}" for layer in chosen for own in ("kernel", "bias")}
    for layer, c in chosen.items():
        start = {v.name: np.abs(array(v)) for v in model.get_layer(layer).weights}
        own = np.concatenate([values.ravel() for values in start.values()]).astype("float64")
        threshold = own.mean() + c * own.std()
        for name, values in start.items():
            kept = bits(result.masks, f"{layer}/{name}")
            np.testing.assert_array_equal(kept, values > 0.9 * threshold)
            after = array(getattr(result.model.get_layer(layer), name))
            np.testing.assert_array_equal(after != 0, kept)
    assert result.masks.compression > 1
    assert (array(result.model.get_layer("second").kernel) != 0).all()


def test_layers_are_masked_in_turns() -> None:
    seen: list[tuple[int, ...]] = []

    def look(_: Any, now: Any) -> None:
        layers = (now.get_layer(name) for name in ("first", "second", "head"))
        seen.append(
            tuple(sum(int((array(v) != 0).sum()) for v in layer.weights) for layer in layers)
        )

    sparsify(
        network(),
        sparsity={"first": 0.5, "head": 0.75},
        turns=["head", "first"],
        schedule="one-shot",
        updates=8,
        every=1,
        gamma=0.0,
        evaluate_every=1,
        callbacks=[look],
    )
    whole, head, both = (95, 184, 51), (95, 184, 12), (47, 184, 12)
    assert seen == [whole] + [head] * 3 + [both] * 5
    with pytest.raises(ConfigError, match="matches no layer; did you mean 'first'"):
        sparsify(network(), sparsity=0.5, turns=["frist"])


def test_without_splicing_nothing_comes_back_and_with_it_something_does() -> None:
    def kept(splice: bool) -> list[Any]:
        model, seen = network(), []
        model.optimizer.learning_rate = 0.1  # so that weights move past each other
        sparsify(
            model,
            sparsity={"second": 0.5},
            splice=splice,
            updates=12,
            evaluate_every=1,
            schedule="one-shot",
            every=1,
            callbacks=[lambda _, now: seen.append(array(now.get_layer("second").kernel) != 0)],
        )
        return seen[2:]

    back = {s: sum(int((b & ~a).sum()) for a, b in pairwise(w))
            for s in (True, False) for w in [kept(s)]}  # fmt: skip
    assert back[True] > 0 == back[False]


def test_ctrl_c_within_an_epoch_and_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    whole = sparsify(network(), sparsity=0.5, updates=8)

    def interrupt(batch: int, logs: Any) -> None:
        if batch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    stop = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    first = sparsify(
        network(), sparsity=0.5, updates=8, out=tmp_path, finetune={"callbacks": [stop]}
    )
    assert first.stopped == "interrupted"
    again = sparsify(network(), sparsity=0.5, updates=8, out=tmp_path, resume=True)
    assert again.stopped == "done"
    for one, other in zip(again.model.weights, whole.model.weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))
    for name, mask in whole.masks.items():
        np.testing.assert_array_equal(mask, again.masks[name])


def test_the_gradient_of_a_weight_is_what_evaluate_says() -> None:
    model, step, name = network(), 1e-2, "head/kernel"
    kernel = model.get_layer("head").kernel
    whole = array(kernel)
    found = find_saliency("taylor").of(
        Working(model), [name], batches(X, Y, batch_size=48), loss=compiled_loss(model)
    )[name]

    def changed(at: tuple[int, int], by: float) -> float:
        other = whole.copy()
        other[at] += by
        kernel.assign(other)
        return mean_loss(model, batch_size=48)

    for at in ((0, 0), (5, 2), (15, 1)):
        slope = (changed(at, step) - changed(at, -step)) / (2 * step)
        assert float(found[at]) == pytest.approx(abs(slope * whole[at]), rel=2e-2, abs=2e-5)


@pytest.mark.parametrize("saliency", ["taylor", "obd", "gauss-newton"])
def test_saliencies_by_the_loss(saliency: str) -> None:
    if saliency == "gauss-newton" and keras.backend.backend() != "torch":
        with pytest.raises(ConfigError, match="take 'obd'"):
            sparsify(network(), compression=3, saliency=saliency)
        return
    result = sparsify(network(), compression=3, saliency=saliency, score_batches=1)
    assert result.stopped == "done"
    assert result.masks.compression >= 3


def test_what_cannot_be_done_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fine-tuned as it is compiled"):
        sparsify(network(), sparsity=0.5, lr=0.1)
    with pytest.raises(ConfigError, match="one of the two"):
        sparsify(network(), sparsity=0.5, finetune={"epochs": 1})
    with pytest.raises(ConfigError, match="matches no layer; did you mean 'second'"):
        sparsify(network(), sparsity={"secnd": 0.5})
    averaged = network()
    averaged.compile(keras.optimizers.SGD(use_ema=True), averaged.loss)
    with pytest.raises(ConfigError, match="averages weights"):
        sparsify(averaged, sparsity=0.5)
    result = sc.sparsify(network(), X, Y, sparsity=0.5, finetune={"epochs": 2}, progress=False)
    assert [record["update"] for record in result.history] == [0, 2, 4]
    with pytest.raises(ConfigError, match="dense"):
        result.save(tmp_path, sparse=True)
