"""Trace + group + plan + apply, against Torch-Pruning on the same networks in one process.

Both cut a random 30% of every group in place. Torch-Pruning is used as its README says: an
importance (random, so that no scoring is timed), a pruner over the whole model with the classifier
ignored, one step. The two take turns in one process, each on a fresh copy of the same model; a
network has a process of its own, as it has where somebody prunes it.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import time
import warnings
from importlib.metadata import version

import torch
import torch_pruning as tp
import typer
from vision import torchvision_models

import secateurs as sc
from secateurs.tables import render

NETWORKS = ("resnet50", "vgg16_bn", "densenet121", "mobilenet_v2")
FRACTION = 0.3


def ours(model: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    return sc.apply(model, sc.trace(model, x).random_plan(FRACTION), inplace=True)


def theirs(model: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1:]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=FRACTION,
        ignored_layers=last,
    )
    pruner.step()
    return model


def timed(function, model: torch.nn.Module, x: torch.Tensor) -> tuple[float, int]:
    model = copy.deepcopy(model)
    started = time.perf_counter()
    function(model, x)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        model(x)
    return seconds, sum(p.numel() for p in model.parameters())


def measure(name: str, repeats: int) -> tuple[str, ...]:
    """A row of the table: median seconds of each (smallest to largest), the ratio, what is left."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    model = getattr(torchvision_models(), name)(weights=None).eval()
    mine, peer = [], []
    for _ in range(repeats + 1):
        mine.append(timed(ours, model, x))
        peer.append(timed(theirs, model, x))
    a, b = ([t for t, _ in runs[1:]] for runs in (mine, peer))
    ratio = statistics.median(s / t for s, t in zip(a, b, strict=True))
    return (
        name,
        f"{statistics.median(a):.3f} ({min(a):.3f} to {max(a):.3f})",
        f"{statistics.median(b):.3f} ({min(b):.3f} to {max(b):.3f})",
        f"{ratio:.2f}",
        f"{mine[-1][1] / 1e6:.2f} M",
        f"{peer[-1][1] / 1e6:.2f} M",
    )


def main(repeats: int = 15, together: bool = False) -> None:
    """Print the table: each network in a process of its own, or all in one after the other."""
    if together:
        rows = [measure(name, repeats) for name in NETWORKS]
    else:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            rows = [pool.apply(measure, (name, repeats)) for name in NETWORKS]
    columns = (
        "network",
        "secateurs (s)",
        "Torch-Pruning (s)",
        "ratio",
        "left, ours",
        "left, theirs",
    )
    print(
        render(
            f"median of {repeats} (smallest to largest), {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, torch-pruning {version('torch-pruning')}",
            columns,
            rows,
        )
    )


if __name__ == "__main__":
    typer.run(main)
