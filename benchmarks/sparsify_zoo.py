"""Dynamic network surgery on many networks: does it run, reach its target, and save exactly?

Each network keeps its random weights and gets a few updates on random data: what is asked is
whether the masks, the cut of dead units and the sparse file work on it. Writes
docs/results/sparsify-zoo.md.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from export_zoo import UNet
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from versus_table import markdown
from vision import torchvision_models

import secateurs as sc
from lenet import LeNet5
from secateurs.atomic import write_text
from secateurs.errors import SecateursError

KEEP = 0.1
UPDATES = 4


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, and a classifier of its last step."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = layer(16, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens))[0][:, -1])


class Tied(nn.Module):
    """An embedding whose weights are those of the output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(tokens))))


def image(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, *shape)


def tokens() -> Tensor:
    return torch.randint(50, (2, 7))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def vision(name: str, **options: Any) -> tuple[Callable[[], nn.Module], Callable[[], Tensor]]:
    make = getattr(torchvision_models(), name)
    return lambda: make(weights=None, num_classes=10, **options), image(3, 64, 64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "LeNet-5": (LeNet5, image(1, 28, 28)),
    "U-Net": (UNet, image(3, 32, 32)),
    "GRU": (lambda: Recurrent(nn.GRU), tokens),
    "LSTM": (lambda: Recurrent(nn.LSTM), tokens),
    "RNN": (lambda: Recurrent(nn.RNN), tokens),
    "tied embedding": (Tied, tokens),
    "TransformerEncoder": (encoder, image(5, 32)),
    **{
        name: vision(name)
        for name in (
            "alexnet convnext_tiny densenet121 efficientnet_b0 mnasnet1_0 mobilenet_v2 "
            "mobilenet_v3_large mobilenet_v3_small regnet_y_400mf resnet18 resnet50 "
            "resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t"
        ).split()
    },
    "googlenet": vision("googlenet", aux_logits=False, init_weights=False),
    "vgg11": (vision("vgg11")[0], image(3, 32, 32)),
}


def objective(model: nn.Module, batch: Tensor) -> Tensor:
    """Outputs near one; what matters is that every weight has a gradient."""
    outputs = [leaf for leaf in pytree.tree_leaves(model(batch)) if isinstance(leaf, Tensor)]
    return torch.stack([(output - 1).square().mean() for output in outputs]).mean()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks hold the same numbers, bit by bit."""
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def row(name: str) -> tuple[str, ...]:
    """One network: what was kept, how small its file is, and which dead units went."""
    make, draw = NETWORKS[name]
    torch.manual_seed(0)
    model, x, started = make().eval(), draw(), time.process_time()
    result = sc.sparsify(
        model,
        x,
        train=[draw() for _ in range(UPDATES)],
        objective=objective,
        sparsity=1 - KEEP,
        updates=UPDATES,
        every=1,
        lr=1e-4,
        progress=False,
    )
    seconds = time.process_time() - started
    masks, pruned = result.masks, result.model
    zeros = {n: p.detach() != 0 for n, p in pruned.named_parameters() if n in masks}
    assert not any(bool((kept & ~masks[n]).any()) for n, kept in zeros.items()), "a mask leaks"
    assert masks.kept <= KEEP * masks.total, "the target is missed"
    folder = Path(tempfile.mkdtemp())
    size = sum(p.numel() * p.element_size() for p in pruned.state_dict().values())
    sc.save(pruned, None, folder, sparse=True)
    assert same(pruned, sc.load(folder, copy.deepcopy(model))), "the file is not exact"
    small = (folder / "model.safetensors").stat().st_size
    try:
        dead = sc.dead_units(pruned, x)
        sc.remove_dead(pruned, x)
        units = f"{len(dead)} go, {sum(map(len, dead.kept.values()))} stay"
    except SecateursError as error:
        units = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    kept = f"{masks.kept:,} of {masks.total:,}"
    return name, kept, f"{size / small:.1f}×", units, f"{seconds:.1f}"


def main(only: str = "", out: str = "") -> None:
    """Print the table, and write it with --out."""
    torch.set_flush_denormal(True)
    rows, failures = [], 0
    for name in NETWORKS:
        if only in ("", name):
            try:
                rows.append(row(name))
            except (SecateursError, AssertionError) as error:
                failures += 1
                rows.append((name, f"{type(error).__name__}: {error}", "", "", ""))
            print(" | ".join(rows[-1]), flush=True)
    columns = ("network", "weights kept", "file smaller by", "dead units", "seconds of processor")
    page = f"""# Dynamic network surgery on many networks

`make sparsify-zoo`. Each network keeps its random weights (seed 0) and gets {UPDATES} updates on
random data, under masks that end at {KEEP:.0%} of its weights and biases. Checked: no weight
that is masked is anything but zero, no more is kept than asked for, the sparse file gives back
every bit, and the network without its dead units gives the same outputs (`remove_dead` checks that
itself). With random data and so few updates few units die. Normalisations have no mask and count as
kept.

{markdown(columns, rows)}

torch {torch.__version__}, one thread.
"""
    if out:
        write_text(out, page)
    raise typer.Exit(bool(failures))


if __name__ == "__main__":
    typer.run(main)
