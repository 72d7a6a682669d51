"""Time a training step with masks against a plain one, and count what the masks take."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from vision import torchvision_models

import secateurs as sc
from lenet import LeNet5
from secateurs.process.options import SparsifyOptions
from secateurs.process.training import Trainer
from secateurs.tables import render

LOSS = nn.CrossEntropyLoss()
ROUNDS = 5


def plain(model: nn.Module, batches: list, updates: int) -> float:
    """Seconds of one update of an unmasked model."""
    trainer = Trainer(model, batches, LOSS, None, None, None, SparsifyOptions())
    trainer.train(2, lambda: True)
    started = time.perf_counter()
    trainer.train(updates, lambda: True)
    return (time.perf_counter() - started) / updates


def masked(model: nn.Module, batches: list, updates: int) -> float:
    """Seconds of one update under masks, all changes of masks among them."""
    result = sc.sparsify(
        model, batches[0][0], train=batches, loss=LOSS, compression=10, updates=updates,
        warmup=2, evaluate_every=updates + 2, progress=False,
    )  # fmt: skip
    return float(result.history[-1]["seconds"]) / (updates + 2)


def memory(model: nn.Module) -> tuple[float, float]:
    """Bytes per weight of the masks, and copies of the weights that a step makes."""
    masks = sc.Masks.full(model)
    own = dict(model.named_parameters())
    dense = {name: own[name].data for name in masks}
    with masks.applied(model):
        new = sum(own[n].nbytes for n, d in dense.items() if own[n].data_ptr() != d.data_ptr())
    weights = sum(p.nbytes for p in own.values())
    return sum(m.nbytes for m in masks.values()) / sum(
        p.numel() for p in own.values()
    ), new / weights


def main() -> None:
    """Print one row a network."""
    torch.manual_seed(0)
    nets = {
        "LeNet-5, batch 64": (LeNet5, (64, 1, 28, 28), 100),
        "ResNet-18, batch 16 of 64²": (
            lambda: torchvision_models().resnet18(num_classes=10), (16, 3, 64, 64), 20,
        ),
    }  # fmt: skip
    rows = []
    for name, (make, shape, updates) in nets.items():
        model = make()
        batches = [(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(4)]
        pairs = []
        for _ in range(ROUNDS):
            pairs.append((plain(make(), batches, updates), masked(model, batches, updates)))
        ratios = sorted(with_masks / without for without, with_masks in pairs)
        mask_bytes, copies = memory(model)
        rows.append(
            (
                name,
                f"{statistics.median(p for p, _ in pairs) * 1e3:.1f}",
                f"{statistics.median(m for _, m in pairs) * 1e3:.1f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
                f"{mask_bytes:.2f}",
                f"{copies:.2f}",
            )
        )
    threads = torch.get_num_threads()
    title = f"median of {ROUNDS} rounds, {threads} threads; masks change every 10 updates"
    columns = ("network", "plain ms", "masked ms", "ratio", "mask bytes", "weight copies")
    print(render(title, columns, rows))


if __name__ == "__main__":
    main()
