"""What a Taylor pass costs, against a plain forward and backward over the same batches."""

from __future__ import annotations

import statistics
import time

import torch
import typer
from torch import nn
from vision import torchvision_models

import secateurs as sc
from lenet import lenet5
from secateurs.tables import render


def plain(model: nn.Module, data: list, loss: nn.Module) -> None:
    for x, y in data:
        model.zero_grad(set_to_none=True)
        loss(model(x), y).mean().backward()


def main(repeats: int = 5, batches: int = 8) -> None:
    """Print the table: median ratio and its spread; the two take turns."""
    torch.manual_seed(0)
    models = torchvision_models()
    cases = {
        "LeNet-5, batch 64": (lenet5(), (64, 1, 28, 28)),
        "ResNet-18, batch 8": (models.resnet18(), (8, 3, 224, 224)),
        "DenseNet-121, batch 4": (models.densenet121(), (4, 3, 224, 224)),
    }
    loss = nn.CrossEntropyLoss(reduction="none")
    rows = []
    for name, (model, shape) in cases.items():
        model.eval()
        count = batches * (16 if shape[1] == 1 else 1)
        data = [(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(count)]
        graph = sc.trace(model, data[0][0])
        ratios = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            plain(model, data, loss)
            between = time.perf_counter()
            sc.score(model, graph, data, loss=loss)
            ratios.append((time.perf_counter() - between) / (between - started))
        ratios = sorted(ratios[1:])
        rows.append(
            (name, f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}")
        )
    title = f"Taylor pass / plain forward and backward, {torch.get_num_threads()} threads"
    print(render(title, ("network", "ratio", "spread"), rows))


if __name__ == "__main__":
    typer.run(main)
