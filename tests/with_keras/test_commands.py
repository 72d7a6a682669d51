"""`secateurs inspect|prune|compare|verify model.keras`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from secateurs.cli.app import app

from .test_process import X, Y, network

DATA = """
import numpy as np
def train():
    rng = np.random.default_rng(0)
    return rng.normal(size=(48, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 48)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained model and its data, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_keras_data.py").write_text(DATA)
    network().save("net.keras")
    return tmp_path


def command(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(list(args))
    return int(end.value.code or 0)


def test_a_file_is_inspected_pruned_and_verified(here: Path, capsys: Any) -> None:
    assert command("inspect", "net.keras", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [(g["name"], g["size"]) for g in record["groups"]] == [("first", 5), ("second", 4)]
    given = ["--model", "net.keras", "--train", "own_keras_data:train", "--budget", "macs=0.6"]
    few = ["--updates", "1", "--final", "1", "--step", "2", "--no-progress", "--no-report"]
    assert command("prune", *given, *few, "--out", "run") == 0
    small = keras.models.load_model("run/model.keras")
    assert small.predict(X, verbose=0).shape == (48, 3)
    assert small.count_params() < network().count_params()
    capsys.readouterr()
    assert command("verify", "run", "net.keras") == 0
    assert "the saved model loads and runs" in capsys.readouterr().out
    assert command("verify", "run") == 0  # the folder says what it was cut from, and that is data
    kernel = small.get_layer("head").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    small.save("run/model.keras")  # the negative control
    assert command("verify", "run", "net.keras") == 1


def test_single_weights_of_a_file_are_pruned(here: Path, capsys: Any) -> None:
    given = ["--model", "net.keras", "--train", "own_keras_data:train", "--sparsity", "0.5"]
    few = ["--updates", "2", "--every", "1", "--no-progress"]
    assert command("sparsify", *given, *few, "--out", "sparse") == 0
    assert "model.keras  weights, zero where they are gone" in capsys.readouterr().out
    small = keras.models.load_model("sparse/model.keras")
    gone = sum(int((w == 0).sum()) for w in small.get_weights())
    assert gone == small.count_params() // 2


def test_criteria_are_compared_from_a_file(here: Path, capsys: Any) -> None:
    given = ["--model", "net.keras", "--train", "own_keras_data:train", "--criteria", "l2"]
    few = [
        "--updates",
        "1",
        "--budgets",
        "0.6",
        "--seeds",
        "0",
        "--forms",
        "one-shot",
        "--no-progress",
    ]
    assert command("compare", *given, *few, "--no-report", "--out", "compared") == 0
    assert (here / "compared" / "comparison.jsonl").exists()


def test_code_in_a_file_is_never_run(here: Path, capsys: Any) -> None:
    inputs = keras.Input((4,))
    outputs = keras.layers.Lambda(lambda x: x + 1)(inputs)
    keras.Model(inputs, outputs).save("code.keras")
    assert command("inspect", "code.keras") == 2
    assert "error: code.keras cannot be loaded as a Keras model" in capsys.readouterr().err


def test_a_legacy_file_is_read(here: Path, capsys: Any) -> None:
    model = network()
    model.fit(X, Y, verbose=0)
    model.save("old.h5")
    assert command("inspect", "old.h5") == 0
