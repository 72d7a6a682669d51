"""Sparse files: how small, how exact, beside other codings; layers in compressed rows, timed."""

from __future__ import annotations

import copy
import itertools
import lzma
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc
from lenet import LeNet5, pretrained
from mnist import loaders
from secateurs.atomic import write_text
from secateurs.files.coded import positions
from secateurs.files.coded.stream import squeeze
from secateurs.files.coded.values import KINDS
from secateurs.files.store import WEIGHTS
from secateurs.latency import latency
from train import error

# What is kept of each layer: the shares of Guo et al. 2016, table 2, for LeNet-5 at 108×
SHARES = {"conv1": 0.142, "conv2": 0.031, "fc1": 0.007, "fc2": 0.043}
WANTED = {"exact": 70, "int8": 150, "codebook": 200}
# More is kept at first, so that the cut is gradual: shares of what goes.
STAGES = (0.3, 0.15, 0.08, 0.05, 0.03, 0.02, 0.012, 0.007, 0.004, 0.002, 0.001, 0.0)
LR, UPDATES, LAST = 0.02, 60, 600


# ---------------------------------------------------------------------- the network
def pruned(seed: int) -> nn.Module:
    """A trained LeNet-5 with the smallest weights of each layer cut in stages, and retrained."""
    torch.manual_seed(seed)
    model = pretrained(seed).train()
    batches = itertools.chain.from_iterable(itertools.repeat(loaders(128, seed=seed)[0]))
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    for stage in STAGES:
        gone = _smallest(model, stage)
        updates = LAST if stage == STAGES[-1] else UPDATES
        for step in range(updates):
            images, labels = next(batches)
            falls = 1 - step / updates if stage == STAGES[-1] else 1.0
            optimizer.param_groups[0]["lr"] = LR * max(falls, 0.005)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            for parameter, mask in gone.items():
                parameter.data.masked_fill_(mask, 0)
    return model.eval()


def _smallest(model: nn.Module, stage: float) -> dict[nn.Parameter, Tensor]:
    """Of each parameter, true where it goes: biases are cut as the weights of their layer."""
    gone = {}
    for name, share in SHARES.items():
        for parameter in model.get_submodule(name).parameters():
            keep = max(1, round(parameter.numel() * (share + (1 - share) * stage)))
            least = parameter.detach().abs().flatten().topk(keep).values[-1]
            gone[parameter] = parameter.detach().abs() < least
            parameter.data.masked_fill_(gone[parameter], 0)
    return gone


def networks(seeds: int, given: list[Path]) -> list[nn.Module]:
    """Those in files, or those that are pruned here."""
    if not given:
        return [pruned(seed) for seed in range(seeds)]
    models = [LeNet5().eval() for _ in given]
    for model, path in zip(models, given, strict=True):
        model.load_state_dict(load_file(path))
    return models


# ---------------------------------------------------------------------- files
def size(model: nn.Module, folder: str, **how: object) -> int:
    """Bytes of the weights' file."""
    return (sc.save(model, None, folder, **how) / WEIGHTS).stat().st_size


def files(models: list[nn.Module]) -> Iterator[tuple]:
    """A row a coding: means over the networks, with the worst."""
    held_out = loaders()[1]
    with tempfile.TemporaryDirectory() as folder:
        dense = [size(model, folder) for model in models]
        before = [error(model, held_out) for model in models]
        yield "dense", f"{dense[0]:,}", "1", "", f"{statistics.mean(before):.2f}", "", ""
        for kind in KINDS:
            sizes, changes = [], []
            for model, base in zip(models, before, strict=True):
                sizes.append(size(model, folder, sparse=True, values=kind))
                back = sc.load(folder, LeNet5()).eval()
                changes.append(error(back, held_out) - base)
                if kind == "exact":
                    _same_bits(model, back)
            times = [a / b for a, b in zip(dense, sizes, strict=True)]
            yield (
                kind, f"{statistics.mean(sizes):,.0f}", f"{statistics.mean(times):.1f}×",
                f"{min(times):.1f}×", f"{statistics.mean(before) + statistics.mean(changes):.2f}",
                f"{statistics.mean(changes):+.3f}", f"{max(changes):+.2f}",
            )  # fmt: skip


def _same_bits(model: nn.Module, back: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor.view(torch.int32), back.state_dict()[name].view(torch.int32)):
            raise SystemExit(f"{name} did not come back bit by bit")


def codings(model: nn.Module) -> Iterator[tuple]:
    """What other codings of the same places and values take, over all tensors."""
    total: dict[str, float] = {}
    for tensor in model.state_dict().values():
        for what, bytes_ in _codings(tensor.numpy()).items():
            total[what] = total.get(what, 0) + bytes_
    for what, bytes_ in total.items():
        yield what, f"{bytes_:,.0f}"


def _codings(weights: np.ndarray) -> dict[str, float]:
    kept = weights != 0
    mask, count = np.packbits(kept).tobytes(), int(kept.sum())
    steps = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    matrix = kept.reshape(positions.matrix(kept.shape))
    live = int(matrix.any(1).sum()) * int(matrix.any(0).sum())
    long = b"".join(b"\xff" * (int(s) // 255) + bytes([int(s) % 255]) for s in steps)
    raw = weights[kept].tobytes()
    planes = np.frombuffer(raw, np.uint8).reshape(-1, 4).T
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    return {
        "places: 32-bit indices": 4 * count,
        "places: CSR of 32-bit numbers": 4 * (count + len(matrix) + 1),
        "places: bitmask": len(mask),
        "places: bitmask, deflated as here": len(squeeze(mask)),
        "places: bitmask, LZMA": len(lzma.compress(mask, lzma.FORMAT_RAW, filters=filters)),
        **{f"places: {b}-bit gaps, escapes": _fixed(steps, b) for b in (4, 5, 8)},
        "places: gaps of a byte, deflated as here": len(squeeze(long)),
        "places: gaps, Golomb-Rice": len(positions.gaps(np.flatnonzero(kept))),
        "places: entropy, were they independent": _entropy(kept.size, count) / 8,
        "places: as written here": len(positions.encode(matrix)[1]),
        "places: entropy in live rows and columns": (
            sum(matrix.shape) + _entropy(live, count)
        ) / 8,
        "values: as they are": len(raw),
        "values: deflated as here": len(squeeze(raw)),
        "values: LZMA": len(lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)),
        "values: byte planes, deflated together": len(squeeze(planes.tobytes())),
        "values: byte planes, as written here": sum(len(squeeze(p.tobytes())) for p in planes),
    }  # fmt: skip


def _fixed(steps: np.ndarray, bits: int) -> float:
    """Gaps of so many bits, the highest of which stands for a filler zero (Han et al. 2015)."""
    return float((len(steps) + (steps // (2**bits - 1)).sum()) * bits / 8)


def _entropy(places: int, kept: int) -> float:
    share = kept / places if places else 0.0
    if share in (0.0, 1.0):
        return 0.0
    return -places * (share * math.log2(share) + (1 - share) * math.log2(1 - share))


def large() -> Iterator[tuple]:
    """25 million weights of which a random tenth is kept: what writing and reading takes."""
    torch.manual_seed(0)
    layers = [nn.Linear(1024, 1024) for _ in range(24)]
    model, other = nn.Sequential(*layers), nn.Sequential(*copy.deepcopy(layers))
    for parameter in model.parameters():
        parameter.data.masked_fill_(torch.rand_like(parameter) > 0.1, 0)
    with tempfile.TemporaryDirectory() as folder:
        for name, how in (("dense", {}), *((k, {"sparse": True, "values": k}) for k in KINDS)):
            started = time.perf_counter()
            bytes_ = size(model, folder, **how)
            saved = time.perf_counter()
            sc.load(folder, other)
            loaded = time.perf_counter()
            yield name, f"{bytes_ / 1e6:,.1f} MB", f"{saved - started:.1f}", f"{loaded - saved:.1f}"


# ---------------------------------------------------------------------- layers in rows
def layers(lenet: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """What is timed: name, layer, shape of an input."""
    yield "LeNet-5, conv1", lenet.conv1, (1, 28, 28)
    yield "LeNet-5, conv2", lenet.conv2, (20, 12, 12)
    yield "LeNet-5, fc1", lenet.fc1, (800,)
    yield "LeNet-5, fc2", lenet.fc2, (500,)
    for kept in (0.01, 0.05, 0.1, 0.3):
        yield f"Linear(4096, 4096), {kept:.0%}", _random(nn.Linear(4096, 4096), kept), (4096,)
    for kept in (0.02, 0.1):
        conv = _random(nn.Conv2d(512, 512, 3, padding=1), kept)
        yield f"Conv2d(512, 512, 3), 7×7, {kept:.0%}", conv, (512, 7, 7)


def _random(layer: nn.Module, kept: float) -> nn.Module:
    layer.weight.data.masked_fill_(torch.rand_like(layer.weight) > kept, 0)
    return layer


def timed(lenet: nn.Module, batches: tuple[int, ...] = (1, 64)) -> Iterator[tuple]:
    """Dense and CSR by turns; then the network as `to_csr` has it."""
    for name, layer, shape in layers(lenet):
        row = [name]
        for batch in batches:
            x = torch.randn(batch, *shape)
            dense = nn.Sequential(copy.deepcopy(layer))
            a, b = latency([dense, sc.to_csr(dense, x, gain=0)], x, rounds=7, seconds=0.02)
            row += [f"{1e6 * a.median:,.0f}", f"{1e6 * b.median:,.0f}"]
            row.append(f"{a.median / b.median:.2f}×")
        yield tuple(row)
    row = ["LeNet-5, what is faster"]
    for batch in batches:
        x = torch.randn(batch, 1, 28, 28)
        a, b = latency([lenet, sc.to_csr(lenet, x)], x, rounds=7, seconds=0.02)
        row += [f"{1e6 * a.median:,.0f}", f"{1e6 * b.median:,.0f}", f"{a.median / b.median:.2f}×"]
    yield tuple(row)


# ---------------------------------------------------------------------- the page
def main(
    seeds: int = 3,
    network: Annotated[
        list[Path] | None,
        typer.Option(help="a LeNet-5 pruned elsewhere, as safetensors; again for more"),
    ] = None,
    out: Path | None = None,
) -> None:
    """Print the page, and write it."""
    torch.set_flush_denormal(True)
    models = networks(seeds, network or [])
    kept = [sum(int(p.count_nonzero()) for p in model.parameters()) for model in models]
    names = ", ".join(f"`{path.stem}`" for path in network or [])
    origin = (
        f"of `make splicing`, {names}"
        if names
        else f"of seeds 0 to {seeds - 1}, pruned by the command"
    )
    torch.manual_seed(0)
    page = PAGE.format(
        machine=f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch "
        f"{torch.__version__}",
        origin=origin,
        kept=", ".join(f"{n:,}" for n in kept),
        wanted=", ".join(f"{kind} ≥ {times}×" for kind, times in WANTED.items()),
        files=_table("values bytes smaller worst error change worst", files(models)),
        codings=_table("coding bytes", codings(models[0])),
        large=_table("file size save(s) load(s)", large()),
        layers=_table("layer dense,1 CSR,1 ratio,1 dense,64 CSR,64 ratio,64", timed(models[0])),
    )
    print(page)
    if out is not None:
        write_text(out, page)


def _table(columns: str, rows: Iterator[tuple]) -> str:
    names = [name.replace(",", ", batch ").replace("(", " (") for name in columns.split()]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


PAGE = """# Sparse files

`make bench-sparse` writes this page: {machine}. The
[guide](../guides/sparse-files.md) tells how such files are made, and their layout.

## How small, how exact

LeNet-5 (431,080 parameters) on MNIST, networks {origin}: {kept} weights and biases are kept.
The file is `model.safetensors`, all of it. Means over the networks; the first `worst` is the least
ratio, the second the largest change. Error and change in points of the test images; `exact` is
compared bit by bit. Aims: {wanted}; each at a change of at most 0.05.

{files}

## Beside other codings

Bytes for all tensors of the first of these networks.

{codings}

## Time

24 linear layers, 25 million weights, a random tenth kept: no structure to gain by.

{large}

## Layers in compressed rows

`sc.to_csr` against the dense layer, in µs, by turns; above 1× CSR is faster. LeNet-5 is the first
of the networks above; the other layers have random weights, with the share kept that is named.

{layers}
"""

if __name__ == "__main__":
    typer.run(main)
