"""Prune a trained LeNet-5 on MNIST by the greedy Taylor loop, and show what it brought."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import secateurs as sc
from lenet import LeNet5, lenet5, pretrained, weights_path
from mnist import MEAN, STD, loaders
from secateurs.latency import latency
from secateurs.process.result import PruneResult
from secateurs.tables import render
from train import error

EXAMPLE = torch.zeros(1, 1, 28, 28)


def shift(images: Tensor, pixels: int = 1) -> Tensor:
    """Move each image (N, 1, H, W) by up to `pixels` both ways, chosen at random."""
    size = images.shape[-1]
    padded = F.pad(images, [pixels] * 4, value=-MEAN / STD)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    down, right = torch.randint(2 * pixels + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of each image, (N,); while the weights are updated, images are shifted."""
    images, labels = batch
    images = shift(images) if model.training else images
    return F.cross_entropy(model(images), labels, reduction="none")


def optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def schedule(optimizer: torch.optim.Optimizer, updates: int):
    """A short cosine after each removal, one cycle up to a high rate at the end."""
    if updates < 1000:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=updates + 1, pct_start=0.2
    )


def prune_lenet(
    model: LeNet5, macs: float, seed: int, *, validation: bool = False, **options
) -> PruneResult:
    """Prune to a fraction of the MACs; the error is on the test images, or on held-out ones."""
    train, held_out = loaders(seed=seed, validation=validation)
    settings = {"step": 16, "updates": 50, "final": 9000, "flops_weight": 0.3, **options}
    return sc.prune(
        model,
        EXAMPLE,
        train=train,
        objective=objective,
        budget={"macs": macs},
        criterion="taylor",
        evaluate=lambda network: error(network, held_out),
        metric="error",
        mode="min",
        optimizer=optimizer,
        scheduler=schedule,
        seed=seed,
        **settings,
    )


def report(before: LeNet5, result: PruneResult, out: Path) -> str:
    """One table, before and after."""
    after = result.model
    exact = copy.deepcopy(before).double()
    x = torch.randn(16, 1, 28, 28, dtype=torch.float64)
    proof = sc.verify(exact, sc.apply(exact, result.plan), result.plan, x)
    size = [path.stat().st_size for path in (weights_path(0), out / "model.safetensors")]
    rows = [
        ("parameters", *_ratio(result.before["params"], result.after["params"])),
        ("MACs per image", *_ratio(result.before["macs"], result.after["macs"])),
    ]
    for name, old in before.named_modules():
        if isinstance(old, nn.Conv2d | nn.Linear):
            units = [m.weight.shape[0] for m in (old, after.get_submodule(name))]
            rows.append((f"units of {name}", *_ratio(*units)))
    errors = [result.history[0]["metric"], result.history[-1]["metric"]]
    rows.append(("test error", *(f"{e:.2f} %" for e in errors), f"{errors[1] - errors[0]:+.2f}"))
    for batch in (1, 64):
        a, b = latency([before, after], torch.randn(batch, 1, 28, 28))
        rows.append((f"latency, batch {batch}", str(a), str(b), f"{a.median / b.median:.1f}×"))
    rows.append(("file", *_ratio(*size, unit=" B")))
    rows.append(("law of the cut (float64)", "", f"{proof.max_relative_error:.1e}", "largest"))
    title = (
        f"LeNet-5 on MNIST, before and after; latency: median (quartiles), "
        f"{torch.get_num_threads()} threads"
    )
    return render(title, ("", "before", "after", "ratio"), rows)


def _ratio(old: int, new: int, unit: str = "") -> tuple[str, str, str]:
    return f"{old:,}{unit}", f"{new:,}{unit}", f"{old / new:.1f}×"


def main(
    macs: float = typer.Option(0.2, help="Fraction of the multiply-accumulates to keep."),
    seed: int = 0,
    out: str = typer.Option("runs/demo", help="Where to write the pruned network."),
) -> None:
    """Prune the LeNet-5 that train.py made, on all of MNIST."""
    torch.set_flush_denormal(True)
    model = pretrained(seed)
    result = prune_lenet(model, macs, seed)
    folder = result.save(out)
    reloaded = sc.load(out, lenet5()).eval()
    with torch.no_grad():
        x = torch.randn(8, 1, 28, 28)
        if not torch.equal(reloaded(x), result.model.eval()(x)):
            raise RuntimeError("the reloaded network differs from the saved one")
    print(report(model, result, folder))
    print("\nwritten and read back:", *sorted(map(str, folder.iterdir())), sep="\n  ")


if __name__ == "__main__":
    typer.run(main)
