"""What every criterion that looks at data costs, against a plain forward and backward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import typer
from torch import nn
from vision import torchvision_models

import secateurs as sc
from lenet import lenet5
from secateurs.criteria import CRITERIA
from secateurs.tables import render

LOSS = nn.CrossEntropyLoss(reduction="none")


def plain(model: nn.Module, data: list) -> None:
    """One pass as in training: the gradients of the weights."""
    for x, y in data:
        model.zero_grad(set_to_none=True)
        LOSS(model(x), y).mean().backward()


def seconds(run: Callable[[], object]) -> float:
    """Of the processor: what else runs on the machine matters less."""
    started = time.process_time()
    run()
    return time.process_time() - started


def ratios(model: nn.Module, data: list, names: list[str], repeats: int) -> list[list[float]]:
    """Scoring passes over the plain one, rising, by criterion.

    All take turns; the first turn is thrown away.
    """
    graph = sc.trace(model, data[0][0])
    turns = []
    for _ in range(repeats + 1):
        whole = seconds(lambda: plain(model, data))
        passes = (partial(sc.score, model, graph, data, loss=LOSS, criterion=n) for n in names)
        turns.append([seconds(one) / whole for one in passes])
    return [sorted(found) for found in zip(*turns[1:], strict=True)]


def main(repeats: int = 3, batches: int = 2) -> None:
    """Print the table: the median ratio, and its spread."""
    torch.manual_seed(0)
    models = torchvision_models()
    cases = {
        "LeNet-5, batch 64": (lenet5(), (64, 1, 28, 28), 16 * batches),
        "ResNet-18, batch 8": (models.resnet18(num_classes=10), (8, 3, 112, 112), batches),
        "DenseNet-121, batch 8": (models.densenet121(num_classes=10), (8, 3, 112, 112), batches),
    }
    names = [name for name, c in CRITERIA.items() if c.needs - {"change"}]  # the oracle has its own
    columns = []
    for model, shape, count in cases.values():
        model.eval()
        data = [(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(count)]
        found = ratios(model, data, names, repeats)
        columns.append([f"{statistics.median(v):.2f} ({v[0]:.2f} to {v[-1]:.2f})" for v in found])
    title = (
        "scoring pass / plain forward and backward pass, processor time, 10 classes: median "
        f"(spread) of {repeats}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(render(title, ("criterion", *cases), list(zip(names, *columns, strict=True))))


if __name__ == "__main__":
    typer.run(main)
