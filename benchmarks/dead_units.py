"""A LeNet-5 with about 1% of its weights, without its dead units: how small and how fast it is."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from versus_table import markdown

import secateurs as sc
from lenet import LeNet5, lenet5, pretrained
from mnist import load, loaders
from secateurs.atomic import write_text
from secateurs.latency import Latency, latency
from train import error

# What is kept of each layer, biases included: 111 times fewer in all, about as dynamic network
# surgery has it, but less of the convolutions, where the time goes: few weights leave few units.
KEPT = {"conv1": 0.10, "conv2": 0.016, "fc1": 0.0078, "fc2": 0.06}


def thinned(seed: int, epochs: int) -> LeNet5:
    """The example's network pruned by magnitude, step by step, to the shares in `KEPT`."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    model, (batches, _) = pretrained(seed), loaders(seed=seed)
    total, step = epochs * len(batches), 0
    optimizer = torch.optim.SGD(
        model.parameters(), 0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    masks: dict[str, Tensor] = {}
    for _ in range(epochs):
        for images, labels in batches:
            if step % 50 == 0 and step <= total // 2:
                masks = smallest_out(model, min(1.0, 2 * step / total))
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter *= masks[name]
            step += 1
    return model.eval()


@torch.no_grad()
def smallest_out(model: nn.Module, progress: float) -> dict[str, Tensor]:
    """Masks that keep the largest of each layer, fewer by a cubic schedule."""
    masks = {}
    for layer, share in KEPT.items():
        own = {f"{layer}.{n}": p for n, p in model.get_submodule(layer).named_parameters()}
        sizes = torch.cat([p.abs().flatten() for p in own.values()])
        keep = round((share + (1 - share) * (1 - progress) ** 3) * len(sizes))
        threshold = sizes.topk(keep).values[-1]
        masks |= {name: (p.abs() >= threshold).to(p) for name, p in own.items()}
    return masks


# ---------------------------------------------------------------------- timings
def onnx_latency(paths: Sequence[Path], images: Tensor, rounds: int = 15) -> list[Latency]:
    """Seconds per run of each file in onnxruntime on one thread, in turns as `latency` does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(p), options) for p in paths]
    timers = [
        Timer("s.run(None, x)", globals={"s": s, "x": {s.get_inputs()[0].name: images.numpy()}})
        for s in sessions
    ]
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(rounds):
        for timer, mine in zip(timers, times, strict=True):
            mine.append(timer.blocked_autorange(min_run_time=0.05).median)
    return [Latency(*np.quantile(mine, (0.5, 0.25, 0.75)).tolist()) for mine in times]


def timings(models: Sequence[nn.Module]) -> list[list[str]]:
    """A row for each engine and batch size: both latencies, and how many times faster."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            sc.export_onnx(model, torch.randn(2, 1, 28, 28), path)
        for batch in (1, 64):
            images = torch.randn(batch, 1, 28, 28)
            for engine, (dense, small) in (
                ("torch", latency(models, images)),
                ("onnxruntime", onnx_latency(paths, images)),
            ):
                ratio = f"{dense.median / small.median:.1f}×"
                rows.append([engine, str(batch), str(dense), str(small), ratio])
    return rows


def main(
    weights: Annotated[
        Path | None, typer.Option(help="A LeNet-5 with zeros, as safetensors; else one is made.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Where to write the one that is made.")] = None,
    seed: int = 0,
    epochs: int = 3,
    out: Annotated[Path | None, typer.Option(help="A page of Markdown to write.")] = None,
) -> None:
    """Remove the dead units of a thinned LeNet-5, compare outputs and time both."""
    if weights is None:
        model = thinned(seed, epochs)
        if save is not None:
            save_file(model.state_dict(), save)
    else:
        model = lenet5()
        model.load_state_dict(load_file(weights))
    model.eval()
    torch.set_num_threads(1)
    images, labels = load("test")
    dead = sc.dead_units(model, images[:2])
    small = sc.remove_dead(model, images[:2])
    with torch.no_grad():
        wanted = model(images)
        apart = float((wanted - small(images)).abs().max() / wanted.abs().max())
    page = document(
        model, small, dead, apart, [error(m, [(images, labels)]) for m in (model, small)]
    )
    page += markdown(("engine", "batch", "before", "after", "faster"), timings([model, small]))
    page += (
        f"\n\nMilliseconds for a batch on one thread: the median, and the quartiles in brackets. "
        f"{platform.machine()}, torch {torch.__version__}, seed {seed}.\n"
    )
    print(page)
    if out is not None:
        write_text(out, page)


def document(
    model: LeNet5, small: LeNet5, dead: sc.DeadUnits, apart: float, errors: list[float]
) -> str:
    """The page up to the timings."""
    kept = sum(int(p.count_nonzero()) for p in model.parameters())
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    widths = [
        "-".join(str(n) for n in (m.conv1.out_channels, m.conv2.out_channels, m.fc1.out_features))
        for m in (model, small)
    ]
    causes = [why for units in dead.removed.values() for why in units.values()]
    rows = [
        ("units of conv1, conv2, fc1", *widths),
        ("weights and biases, zeros included", *(f"{n:,}" for n in sizes)),
        ("test error", *(f"{e:.2f}%" for e in errors)),
    ]
    return f"""# A LeNet-5 without its dead units

`make bench-dead` runs this and writes the page. A LeNet-5 trained on MNIST keeps {kept:,} of its
{sizes[0]:,} weights and biases, {sizes[0] / kept:.0f} times fewer; `sc.remove_dead` then takes out
{causes.count("without inputs")} units without inputs and {causes.count("without readers")} without
readers, and leaves {sum(map(len, dead.kept.values()))} dead ones. No output for the 10,000 test
images moves by more than {apart:.0e} of the largest.

{markdown(("", "before", "after"), rows)}

"""


if __name__ == "__main__":
    typer.run(main)
