"""One network of `keras.applications`, on the backend that KERAS_BACKEND names.

`cut` deletes a share of every exact group, in both precisions, and saves what is left with its
outputs; `load` loads that and trains it for a step; `time` times trace and rebuild. The record
is the last line of the output.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import typer

FRACTION = 0.3
CLASSES = 10
# The free parameters that an initialisation leaves at 0, at 1 or, for the scale without a name of a
# ConvNeXt block, at 1e-6, so that they would hide a fault; and between what they are drawn
DRAWN = {
    "beta": (-0.1, 0.1), "bias": (-0.1, 0.1), "moving_mean": (-0.1, 0.1),
    "gamma": (0.5, 1.5), "moving_variance": (0.5, 1.5), "variable": (0.5, 1.5),
}  # fmt: skip


def network(name: str, size: int, seed: int = 0) -> Any:
    """The network with random weights, of which none is 0, and with logits for outputs."""
    keras.backend.clear_session()  # else layers without a name are numbered on
    keras.utils.set_random_seed(seed)
    options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    model = getattr(keras.applications, name)(input_shape=(size, size, 3), **options)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        kind = weight.path.rpartition("/")[2].rstrip("_0123456789")
        if kind in DRAWN:
            weight.assign(rng.uniform(*DRAWN[kind], weight.shape))
    return model


def images(size: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(1).uniform(0, 255, (2, size, size, 3)).astype(dtype)


def output(model: Any, x: Any) -> Any:
    return keras.ops.convert_to_numpy(model(x, training=False))


def cut(name: str, size: int, folder: Path) -> dict:
    import secateurs as sc

    model, x = network(name, size), keras.ops.convert_to_tensor(images(size))
    graph = sc.trace(model, x)
    plan = graph.random_plan(FRACTION)
    small, same = sc.apply(model, plan), sc.apply(model, graph.plan({}))
    proof = sc.verify(model, small, plan, x, graph=graph)
    np.save(folder / "x.npy", images(size))
    np.save(folder / "y.npy", output(small, x))
    small.save(folder / "small.keras")
    return {
        "groups": len(graph.groups),
        "exact": sum(group.exact for group in graph),
        "before": model.count_params(),
        "after": small.count_params(),
        "same": bool(np.array_equal(output(same, x), output(model, x))),
        "float32": float(proof.max_relative_error),
        "float64": in_float64(name, size, plan),
    }


def in_float64(name: str, size: int, plan: Any) -> float:
    """How far the law is off in float64, in the programs of both networks.

    Programs, since on torch Keras takes means and normalises in float32 whatever `floatx` is.
    """
    import torch

    import secateurs as sc
    from secateurs.gates import gated_output
    from secateurs.keras.module import Module

    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = network(name, size)
    x = torch.from_numpy(images(size, "float64"))
    small = sc.apply(model, plan)
    wanted = gated_output(widened(model, x), Module(model), plan, x)
    given = gated_output(widened(small, x), Module(small), sc.Plan({}, {}, {}), x)
    return float((wanted - given).abs().max() / wanted.abs().max())


def widened(model: Any, x: Any) -> Any:
    """The graph of a network, in which every float32 is a float64."""
    import torch
    from torch.utils._pytree import tree_map

    from secateurs.groups import Graph
    from secateurs.keras.recorded import program_of
    from secateurs.trace.analyse import Analysis

    def wide(argument: Any) -> Any:
        return torch.float64 if argument is torch.float32 else argument

    program = program_of(model, x)
    for node in program.nodes:
        node.args, node.kwargs = tree_map(wide, (node.args, node.kwargs))
    return Graph(Analysis(program), rebuilt=True)


def load(name: str, size: int, folder: Path) -> dict:
    model = keras.models.load_model(folder / "small.keras")
    x, wanted = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    error = np.abs(output(model, x) - wanted).max() / np.abs(wanted).max()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled = keras.backend.backend() == "jax"  # else it costs minutes, and is not needed
    model.compile(keras.optimizers.SGD(1e-6), loss, jit_compile=compiled)
    losses = model.fit(x, np.zeros(len(x), int), verbose=0).history["loss"]
    return {"error": float(error), "loss": float(losses[0])}


def timed(name: str, size: int, folder: Path) -> dict:
    import secateurs as sc

    model = network(name, size)
    times = [_times()]
    graph = sc.trace(model)
    times.append(_times())
    sc.apply(model, graph.random_plan(FRACTION))
    times.append(_times())
    wall, work = zip(*times, strict=True)
    return {
        "trace": wall[1] - wall[0],
        "rebuild": wall[2] - wall[1],
        "work": work[2] - work[0],
    }


def _times() -> tuple[float, float]:
    """Seconds on the clock, and those of a processor in this process and the one that traces."""
    own = psutil.Process()
    every = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return time.perf_counter(), sum(each.user + each.system for each in every)


PARTS: dict[str, Callable[[str, int, Path], dict]] = {"cut": cut, "load": load, "time": timed}


def main(part: str, name: str, size: int, folder: Path) -> None:
    print(json.dumps(PARTS[part](name, size, folder)))


if __name__ == "__main__":
    typer.run(main)
