"""Train the LeNet-5 that the examples prune, and write its weights beside this file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from lenet import lenet5, weights_path
from mnist import loaders


@torch.no_grad()
def error(model: nn.Module, batches: DataLoader) -> float:
    """Wrongly classified images, in percent."""
    model.eval()
    device = next(model.parameters()).device
    wrong = [model(x.to(device)).argmax(1) != labels.to(device) for x, labels in batches]
    return 100 * torch.cat(wrong).float().mean().item()


def train(
    seed: int = 0,
    epochs: int = 10,
    lr: float = 0.05,
    weight_decay: float = 5e-4,
    validate: bool = typer.Option(
        False, help="Hold out 5,000 training images, report the error on them, write nothing."
    ),
) -> None:
    """Train by SGD with momentum and a one-cycle schedule, on one CPU core."""
    torch.set_num_threads(1)  # so that the weights do not depend on the number of cores
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    model = lenet5()
    batches, held_out = loaders(seed=seed, validation=validate)
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * len(batches))
    for epoch in range(epochs):
        model.train()
        for images, labels in track(batches, f"epoch {epoch + 1}/{epochs}"):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()

    percent = error(model, held_out)
    print(f"{'validation' if validate else 'test'} error {percent:.2f} %")
    if not validate:
        metadata = {
            "seed": str(seed),
            "epochs": str(epochs),
            "test error (%)": f"{percent:.2f}",
            "torch": torch.__version__,
            "command": f"python examples/mnist/train.py --seed {seed} --epochs {epochs} --lr {lr}"
            f" --weight-decay {weight_decay}",
        }
        path = weights_path(seed)
        path.parent.mkdir(exist_ok=True)
        save_file(model.state_dict(), path, metadata)


if __name__ == "__main__":
    typer.run(train)
