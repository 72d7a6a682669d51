"""ONNX and .pt2 of pruned networks, against the networks, at batch 1, 3 and 64.

Each network keeps its default initialisation, takes its running statistics from random images,
and loses a random 30% of every group of units. Writes docs/results/export.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from torch import Tensor, nn
from vision import torchvision_models

import secateurs as sc
from lenet import LeNet5
from secateurs.errors import ExportError

BATCHES = (1, 3, 64)
FRACTION = 0.3
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "export.md"


class UNet(nn.Module):
    """Three levels, joined by concatenation; transposed convolutions on the way up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width)])
        self.low = block(2 * width, 4 * width)
        self.lift = nn.ModuleList(
            [
                nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
                nn.ConvTranspose2d(2 * width, width, 2, 2),
            ]
        )
        self.up = nn.ModuleList([block(4 * width, 2 * width), block(2 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.low(x)
        for lift, up in zip(self.lift, self.up, strict=True):
            x = up(torch.cat([lift(x), skips.pop()], 1))
        return self.head(x)


def block(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


def vision(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision_models(), name)(weights=None, **options)


# The network, and the shape of an image. VGG's classifier wants maps of 7×7.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet-5": (LeNet5, (1, 28, 28)),
    "VGG-11-BN": (vision("vgg11_bn"), (3, 224, 224)),
    "ResNet-18": (vision("resnet18"), (3, 64, 64)),
    "ResNet-50": (vision("resnet50"), (3, 64, 64)),
    "ResNeXt-50": (vision("resnext50_32x4d"), (3, 64, 64)),
    "DenseNet-121": (vision("densenet121"), (3, 64, 64)),
    "MobileNetV2": (vision("mobilenet_v2"), (3, 64, 64)),
    "MobileNetV3-L": (vision("mobilenet_v3_large"), (3, 64, 64)),
    "ShuffleNetV2": (vision("shufflenet_v2_x1_0"), (3, 64, 64)),
    "EfficientNet-B0": (vision("efficientnet_b0"), (3, 64, 64)),
    "GoogLeNet": (vision("googlenet", aux_logits=False, init_weights=False), (3, 64, 64)),
    "ConvNeXt-T": (vision("convnext_tiny"), (3, 64, 64)),
    "RegNetY-400MF": (vision("regnet_y_400mf"), (3, 64, 64)),
    "SqueezeNet 1.1": (vision("squeezenet1_1"), (3, 64, 64)),
    "U-Net": (UNet, (3, 64, 64)),
}


def pruned(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """The pruned network in eval mode, and how many parameters it had."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for _ in range(10):
            model.train()(torch.randn(4, *shape))
    before = sum(p.numel() for p in model.parameters())
    graph = sc.trace(model.eval(), torch.randn(1, *shape))
    return sc.apply(model, graph.random_plan(FRACTION), inplace=True), before


def outcome(write: Callable[..., sc.Exported], *args: object) -> tuple[str, str | None]:
    """A cell of the table, and why it failed."""
    try:
        done = write(*args, batches=BATCHES)
    except ExportError as error:
        return "failed, see below", str(error)
    opset = f"opset {done.opset}, " if done.opset else ""
    return f"{done.max_relative_error:.1e} ({opset}{done.size / 1e6:.1f} MB)", None


def main(only: str = "") -> None:
    """Print the table, and write it unless --only names one network."""
    rows, failures = [], []
    folder = Path(tempfile.mkdtemp())
    for name, (make, shape) in NETWORKS.items():
        if only not in ("", name):
            continue
        model, before = pruned(make, shape)
        after = sum(p.numel() for p in model.parameters())
        cells = [name, f"{shape[-1]}²", f"{before / 1e6:.2f} → {after / 1e6:.2f} M"]
        x = torch.randn(1, *shape)
        for write, suffix in ((sc.export_onnx, "onnx"), (sc.export_pt2, "pt2")):
            cell, why = outcome(write, model, x, folder / f"a.{suffix}")
            cells.append(cell)
            if why:
                failures.append(f"- {name}, {suffix}: {why}")
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    text = page(rows, failures)
    print(text)
    if not only:
        RESULTS.write_text(text, encoding="utf-8")
    raise typer.Exit(1 if failures else 0)


def page(rows: list[str], failures: list[str]) -> str:
    import onnx
    import onnxruntime
    import onnxscript

    versions = ", ".join(
        f"{m.__name__} {m.__version__}" for m in (torch, onnx, onnxscript, onnxruntime)
    )
    table = "\n".join(rows)
    failed = "\n".join(failures) or "No export failed, and no output differed."
    return f"""# Exports of pruned networks

`make export-zoo`. A random {FRACTION:.0%} of every group of units is gone; the example batch is 1.
Each cell gives the largest relative difference from the network's own outputs at batch 1, 3 and 64
(float32, over the largest output; what exceeds 1e-4 is a failure), and the size of the file.

| network | image | parameters | ONNX, in onnxruntime | `.pt2`, read by `sc.load` |
|---|---|---|---|---|
{table}

{failed}

{versions}.
"""


if __name__ == "__main__":
    typer.run(main)
