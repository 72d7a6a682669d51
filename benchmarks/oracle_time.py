"""The exact oracle against one forward per unit, in one process."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import nets
import torch
import typer
from torch import Tensor, nn
from vision import torchvision_models

import secateurs as sc
from lenet import pretrained
from secateurs.atomic import write_text
from secateurs.blocks import Block
from secateurs.compare.price import Meter
from secateurs.data import mnist
from secateurs.exact.changes import Engine
from secateurs.groups import Graph, Group

WANTED = {
    "lenet5": 100.0,
    "vgg16": 4.2,
    "resnet20": 2.3,
    "vit_tiny": 1.6,
    "vit_tiny_blocks": 1.6,
}
loss = nn.CrossEntropyLoss(reduction="none")


def case(name: str, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and its examples."""
    torch.manual_seed(seed)
    if name == "lenet5":
        images, labels = mnist.load("test")
        return pretrained(0), images, labels
    if name.startswith("vit_tiny"):
        torchvision_models()  # timm imports torchvision
        import timm

        model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
        return model.eval(), torch.randn(256, 3, 64, 64), torch.randint(10, (256,))
    images, labels = torch.randn(256, 3, 32, 32), torch.randint(10, (256,))
    model = nets.vgg16() if name == "vgg16" else nets.ResNet20()
    return nets.settled(model, images), images, labels


# ---------------------------------------------------------------------- one forward per unit
def naive_pass(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    """One forward over all examples, as the loop does for each unit: its mean loss."""
    total = 0.0
    with torch.no_grad():
        for images, labels in zip(x.split(batch), y.split(batch), strict=True):
            total += float(loss(model(images), labels).sum())
    return total / len(x)


def best_batch(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """The batch size at which the naive loop is fastest, on at most 1,024 examples."""
    x, y = x[:1024], y[:1024]
    times = {}
    for batch in (16, 32, 64, 128, 256, 512):
        if batch <= len(x):
            naive_pass(model, x[:batch], y[:batch], batch)
            times[batch] = min(timed(model, x, y, batch) for _ in range(2))
    return min(times, key=times.__getitem__)


def timed(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    started = time.process_time()
    naive_pass(model, x, y, batch)
    return time.process_time() - started


def strata(groups: list[Group], units: int) -> list[tuple[str, int]]:
    """At least so many units, as many of each group, spread over it."""
    each = -(-units // len(groups))
    return [
        (group.name, i * group.size // each)
        for group in groups
        for i in range(min(each, group.size))
    ]


def naive_blocks(
    model: nn.Module, groups: list[Group], x: Tensor, y: Tensor, batch: int
) -> list[float]:
    """Seconds of one forward over the data without each block, which is not computed at all."""
    times = []
    for group in groups:
        branch = model.get_submodule(group.name)
        branch.forward = lambda x, *_, **__: torch.zeros_like(x)
        times.append(timed(model, x, y, batch))
        del branch.forward
    return times


def naive(
    model: nn.Module,
    graph: Graph,
    groups: list[Group],
    x: Tensor,
    y: Tensor,
    batch: int,
    units: int,
) -> list[float]:
    """Seconds of one forward over the data, once for each unit of the sample.

    The unit's writers are zeroed in place, which costs nothing: the forward is the model's own.
    """
    if all(isinstance(group, Block) for group in groups):
        return naive_blocks(model, groups, x, y, batch)
    times = []
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, unit in strata(groups, units):
        members = {(m.tensor, m.dim) for m in graph[name].writes + graph[name].carries}
        gone = graph.select({name: [unit]})
        saved = {}
        for path, dim, axis in graph.slots:
            tensor, removed = tensors[path].data, torch.from_numpy(gone.removed(axis))
            if (path, dim) in members and len(removed) == tensor.shape[dim]:
                saved.setdefault(path, tensor.clone())
                tensor.index_fill_(dim, removed.nonzero()[:, 0], 0)
        times.append(timed(model, x, y, batch))
        for path, before in saved.items():
            tensors[path].data.copy_(before)
    return times


# ---------------------------------------------------------------------- the oracle
def ours(engine: Engine, x: Tensor, y: Tensor, share: int) -> tuple[float, float]:
    """Seconds, and peak megabytes, of the oracle.

    With `share` above 1 each so-many-th unit of every group is timed, and counted so often; what
    is done once for all units is timed by itself and counted once.
    """
    ctypes.CDLL(None).malloc_trim(0)  # what is kept of earlier runs would hide what is taken now
    if share == 1:
        with Meter(torch.device("cpu")) as meter:
            started = time.process_time()
            for part in engine.fit((x, y)):
                for _ in engine.changes(part):
                    pass
            total = time.process_time() - started
        return total, _megabytes(meter)
    sizes = {group.name: group.size for group in engine.groups}
    chosen = {name: range(0, size, share) for name, size in sizes.items()}
    once = times_of(engine, x, y, dict.fromkeys(chosen, ()))
    with Meter(torch.device("cpu")) as meter:
        some = times_of(engine, x, y, chosen)
    total = sum(once.values())
    for name, seconds in some.items():
        total += (seconds - once[name]) * sizes[name] / len(chosen[name])
    return total, _megabytes(meter)


def _megabytes(meter: Meter) -> float:
    peak = meter.price.peak_bytes
    return float("nan") if peak is None else peak / 2**20


def times_of(engine: Engine, x: Tensor, y: Tensor, units: dict) -> dict[str, float]:
    """Seconds for each group's share of the units."""
    found = dict.fromkeys(units, 0.0)
    for part in engine.fit((x, y)):
        before = time.process_time()
        for name, _ in engine.changes(part, units):
            now = time.process_time()
            found[name] += now - before
            before = now
    return found


def rows(names: list[str], seed: int, units: int, memory: int, share: int) -> Iterator[tuple]:
    for name in names:
        model, x, y = case(name, seed)
        graph = sc.trace(model, x[:2])
        groups = graph.blocks if name.endswith("blocks") else graph.groups
        size = sum(group.size for group in groups)
        batch = best_batch(model, x, y)
        step = 1 if name == "lenet5" or name.endswith("blocks") else share
        warm, engine, full = (
            Engine(model, graph, loss, memory=memory, skip=skip, groups=groups)
            for skip in (True, True, False)
        )
        list(warm.changes((x[:64], y[:64]), {groups[-1].name: [0]}))
        halves = (groups[::2], groups[1::2]) if name.endswith("blocks") else (groups, groups)
        before = naive(model, graph, halves[0], x, y, batch, units // 2)
        found, peak = ours(engine, x, y, step)
        every = found if name.endswith("blocks") else ours(full, x, y, step)[0]
        after = naive(model, graph, halves[1], x, y, batch, units // 2)
        one = statistics.median(before + after)
        loop = one * size
        yield (
            name,
            f"{len(x):,}",
            size,
            f"{one:.2f} s × {size} = {loop:,.0f} s",
            batch,
            f"{found:,.1f} s" + ("" if step == 1 else f" (from 1/{step} of the units)"),
            f"{loop / found:.1f}×",
            f"{loop / every:.1f}×",
            f"≥ {WANTED[name]:g}×",
            f"{peak:,.0f} of {memory / 2**20:,.0f} MB",
            f"{min(before + after):.2f} to {max(before + after):.2f} s",
        )


def main(
    names: Annotated[list[str] | None, typer.Argument(help="as in WANTED; all if none")] = None,
    seed: int = 0,
    units: Annotated[int, typer.Option(help="units that the naive loop is timed on")] = 32,
    memory: Annotated[int, typer.Option(help="bytes")] = 1_000_000_000,
    share: Annotated[int, typer.Option(help="time each so-many-th unit of the oracle")] = 1,
    out: Path | None = None,
) -> None:
    """Print the table, and write it to a page."""
    columns = (
        "network examples units naive batch oracle ratio unskipped wanted memory spread".split()
    )
    table = list(rows(names or list(WANTED), seed, units, memory, share))
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    for row in table:
        print("\n".join(f"{c:>22}: {v}" for c, v in zip(columns, row, strict=True)), end="\n\n")
    if out is not None:
        head = [_line(columns), _line(["---"] * len(columns))]
        kept = out.read_text().splitlines() if out.exists() else []
        known = {line.split()[1]: line for line in kept if line.startswith("| ")}
        known |= {str(row[0]): _line(row) for row in table}  # those not timed now keep their lines
        text = "\n".join(head + [known[name] for name in WANTED if name in known])
        write_text(out, PAGE.format(machine=machine, seed=seed, units=units, table=text))


def _line(row: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, row)) + " |"


PAGE = """# The exact oracle, timed

`make bench-oracle` writes this page: {machine}, seed {seed}.

{table}

Times are seconds of processor time, which a busy machine disturbs less. Both sides run in one
process on the same threads and the same float32 weights. The naive loop runs the model itself
once for each unit, with the weights that write the unit zeroed (a block is replaced by zeros, and
not computed), at the batch size that is fastest for it; it is timed on at least {units} units, as
many of each group, or on every block (`spread`: the fastest and the slowest forward), and
extrapolated to all.
`memory`: the peak above the model and the data, and the bound. LeNet-5 is the trained network of
the demo on MNIST's test images. VGG-16 and ResNet-20 have random weights with batch statistics of
the images, which are noise: what the weights have learnt matters only for how many samples are
silent, so `unskipped` is the ratio where none is left out. ViT-tiny (timm's
`vit_tiny_patch16_224` on noise of 64 × 64 pixels) has random weights too: its units are heads,
neurons, head dims, and the width of the residual stream, whose statistics are retaken one unit at
a time; those of `vit_tiny_blocks` are its 24 residual branches. Where the oracle is timed on a
part of the units, as `oracle` then says, what is done once for all of them is timed by itself and
counted once.
"""

if __name__ == "__main__":
    typer.run(main)
