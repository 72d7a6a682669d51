"""Dynamic network surgery, with and without splicing: LeNets on MNIST, AlexNets on CIFAR-10.

Source: Guo, Yao, Chen, Dynamic Network Surgery for Efficient DNNs (2016), section 3.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from cells import SEEDS, called, read, run_cells, train_bases
from safetensors.torch import save_file
from splicing_page import PAPER, document
from tasks import CACHE, TASKS, Images
from torch import Tensor, nn

import secateurs as sc
from secateurs.atomic import write_text, write_with
from secateurs.sparse.masks import Masks


@dataclass(frozen=True)
class Recipe:
    """How a network is sparsified; chosen on held-out training images.

    Attributes:
        updates: weight updates in all.
        lr, decay: first rate, and weight decay.
        clip: the largest norm of a gradient, which reaches what is pruned too.
        hold: the part of the updates before the rate falls along a cosine.
        start: compression in one go before the first update; from there the way is a cubic.
        options: of `sc.sparsify`.
        shift: images are moved by up to so many pixels both ways, at random.
        units: group -> the units that stay; the others go by surgery before anything else.
        shares: what is kept of each layer, in proportion; by default one threshold decides.
    """

    updates: int
    lr: float
    decay: float
    clip: float
    hold: float
    start: float
    options: dict[str, Any]
    shift: int = 0
    units: Mapping[str, int] = field(default_factory=dict)
    shares: tuple[float, ...] = ()


RECIPES = {
    "lenet5": Recipe(
        updates=24_000,
        lr=0.02,
        decay=5e-4,
        clip=1.0,
        hold=0.5,
        start=20,
        options={"ramp": 0.4, "stop": 0.75, "every": 20, "precision": "bf16"},
        shift=1,
        units={"conv1": 6, "conv2": 24, "fc1": 160},
    ),
    "lenet-300-100": Recipe(
        updates=10_000,
        lr=0.02,
        decay=1e-3,
        clip=4.0,
        hold=0.5,
        start=1,
        options={"ramp": 0.5, "stop": 0.75},
    ),
    "alexnet-quarter": Recipe(
        updates=8_000,
        lr=0.02,
        decay=5e-4,
        clip=1.0,
        hold=0.5,
        start=1,
        options={"ramp": 0.4, "stop": 0.75, "every": 20, "precision": "bf16"},
        shares=PAPER["alexnet-quarter"][-1],
    ),
}
RECIPES["alexnet-full"] = RECIPES["alexnet-quarter"]
ON_GPU = {"alexnet-full"}
SPLICED = CACHE.parent / "spliced"
QUICK = "lenet-300-100"  # that of the quick form
COMPRESSIONS = {"lenet5": (108.0, 150.0), "lenet-300-100": (56.0, 80.0)}
COMPRESSIONS |= {"alexnet-quarter": (17.7,), "alexnet-full": (17.7,)}


@dataclass(frozen=True)
class Cell:
    """One run; compression 1 is the dense network, trained on for as many updates."""

    net: str
    compression: float
    splice: bool
    seed: int
    scale: float = 1.0
    validation: bool = False


class ClippedSGD(torch.optim.SGD):
    """SGD on gradients of a limited norm."""

    def __init__(self, parameters: Iterable[nn.Parameter], clip: float, **options: Any):
        super().__init__(parameters, momentum=0.9, nesterov=True, **options)
        self.clip = clip

    def step(self, closure: Any = None) -> Any:
        own = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(own, self.clip)
        return super().step(closure)


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss, on images whose strides say that channels come last: convolutions ask."""
    images, labels = batch
    last = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return F.cross_entropy(model(last.permute(0, 3, 1, 2)), labels)


def run(cell: Cell) -> tuple[Cell, dict]:
    """Sparsify a base network, and read the error once."""
    task, recipe, started = TASKS[cell.net], RECIPES[cell.net], time.perf_counter()
    train, test = task.data(cell.validation)
    train = replace(train, shift=max(train.shift, recipe.shift))
    base, example = task.trained(cell.seed, cell.validation), train.standardised(slice(1))
    device = "cuda" if cell.net in ON_GPU else "cpu"
    settings = {"train": train, "objective": objective, "normalize": "none", "device": device}
    settings |= {"seed": cell.seed, "progress": False, **recipe.options}
    plan = narrowing(base, example, train, recipe.units if cell.compression > 1 else {})
    model = sc.apply(base, plan).to(memory_format=torch.channels_last)  # a third faster
    compression = max(1.0, cell.compression * size(model) / size(base))
    start = min(recipe.start, compression)
    begun = sc.sparsify(
        model, example, compression=start, schedule="one-shot", updates=0, **settings
    )
    result = sc.sparsify(
        begun.unbaked(),
        example,
        masks=begun.masks,
        **target(model, compression, recipe.shares),
        splice=cell.splice,
        updates=round(recipe.updates * cell.scale),
        optimizer=lambda parameters: ClippedSGD(
            parameters, recipe.clip, lr=recipe.lr, weight_decay=recipe.decay
        ),
        scheduler=partial(falling, hold=recipe.hold),
        **settings,
    )
    model = result.model.to("cpu", memory_format=torch.contiguous_format)
    write_with(network_of(cell), partial(save_file, widened(model, base, plan)))
    if cell.compression > 1:
        model = sc.remove_dead(model, example)
    kept = Masks.from_zeros(model)
    return cell, {
        "base": test.error(base),
        "error": test.error(model),
        "total": size(base),
        "kept": kept.kept,
        "layers": shares(kept, base),
        "units": {name: len(p) for name, p in model.named_parameters() if p.dim() > 1},
        "losses": [record["loss"] for record in result.history[1:]],
        "spliced": sum(record["spliced"] for record in result.history),
        "pruned": sum(record["pruned"] for record in result.history),
        "updates": result.history[-1]["update"],
        "seconds": time.perf_counter() - started,
    }


def narrowing(
    model: nn.Module, example: Tensor, train: Images, units: Mapping[str, int]
) -> sc.Plan:
    """Leave so many units of some groups, those that Taylor's criterion puts first."""
    graph = sc.trace(model, example)
    if not units:
        return graph.plan({})
    scores = sc.score(model, graph, train.sample(2_000, 0), loss=F.cross_entropy)
    return graph.plan({name: scores[name].argsort()[:-keep] for name, keep in units.items()})


def widened(small: nn.Module, base: nn.Module, plan: sc.Plan) -> dict[str, Tensor]:
    """The weights in the shapes of the base network, with zeros where the plan cuts."""
    state = {name: torch.zeros_like(tensor) for name, tensor in base.state_dict().items()}
    for name, tensor in small.state_dict().items():
        slices = plan.tensors.get(name)
        kept = np.ix_(*(slices.keep(dim)[0] for dim in range(tensor.dim()))) if slices else ...
        state[name][kept] = tensor
    return state


def target(model: nn.Module, compression: float, shares: Sequence[float]) -> dict[str, Any]:
    """What `sc.sparsify` is to reach: in all, or of each layer, in proportion to its share."""
    if not shares or compression == 1:
        return {"compression": compression}
    layers = {name: module for name, module in model.named_modules() if [*module.parameters(False)]}
    sizes = [size(module) for module in layers.values()]
    part = size(model) / compression / sum(map(operator.mul, sizes, shares))
    return {"sparsity": {n: 1 - part * share for n, share in zip(layers, shares, strict=True)}}


def size(model: nn.Module) -> int:
    """Weights and biases."""
    return sum(p.numel() for p in model.parameters())


def network_of(cell: Cell) -> Path:
    """Where the weights are kept, with zeros for what is gone."""
    kind = "spliced" if cell.splice else "pruned"
    extra = ("-held-out" if cell.validation else "") + (f"-{cell.scale:g}" * (cell.scale != 1))
    name = f"{cell.net}-{kind}-{cell.compression:g}x-seed{cell.seed}{extra}"
    return SPLICED / f"{name}.safetensors"


def falling(
    optimizer: torch.optim.Optimizer, updates: int, hold: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate holds for a part of the updates, and then falls to nothing along a cosine."""

    def factor(update: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * max(update / max(updates, 1) - hold, 0) / (1 - hold))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def shares(kept: Masks, base: nn.Module) -> dict[str, float]:
    """Layer -> the fraction of its weights, without biases, that is left."""
    return {
        name.removesuffix(".weight"): int(kept[name].sum()) / p.numel()
        for name, p in base.named_parameters()
        if p.dim() > 1
    }


def cells(nets: Iterable[str], seeds: int, scale: float, validation: bool) -> list[Cell]:
    """Everything on the page, what matters most first."""
    out = []
    for net in nets:
        first, *others = ([(ratio, True), (ratio, False)] for ratio in COMPRESSIONS[net])
        out += [
            Cell(net, compression, splice, seed, scale, validation)
            for (compression, splice), seed in product(
                [*first, (1.0, True), *chain(*others)], range(seeds)
            )
        ]
    return out


def line(record: dict) -> str:
    """What is printed of a run."""
    ratio = record["total"] / record["kept"]
    return (
        f"{record['net']} {record['compression']:g}x splice={record['splice']} "
        f"seed {record['seed']}: {record['base']:.2f} -> {record['error']:.2f}% "
        f"at {ratio:.1f}x, {record['seconds']:.0f} s"
    )


def told(recipe: Recipe) -> str:
    """The recipe in words."""
    units = ", ".join(f"{keep} of `{name}`" for name, keep in recipe.units.items())
    narrow = f" Surgery first: by Taylor's criterion, {units} stay." if units else ""
    layers = " Each layer keeps a share in proportion to the paper's." if recipe.shares else ""
    options = ", ".join(f"{name}={value!r}" for name, value in recipe.options.items())
    start = f", {recipe.start:g}× in one go before the first update" if recipe.start > 1 else ""
    moved = f" Images are moved by up to {recipe.shift} pixel." if recipe.shift else ""
    return (
        f"SGD with Nesterov momentum 0.9, rate {recipe.lr:g} and from {recipe.hold:.0%} of the "
        f"updates on along a cosine to 0, weight decay {recipe.decay:g},\ngradients clipped at "
        f"norm {recipe.clip:g}; `sc.sparsify` with normalize='none', {options}{start}."
        f"{narrow}{layers}{moved}"
    )


def main(
    quick: bool = typer.Option(False, help="LeNet-300-100, one seed, a tenth of the updates."),
    seeds: int = typer.Option(SEEDS, help="Seeds, from 0, each with its own base network."),
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    net: str = typer.Option("", help="Only this network."),
    validation: bool = typer.Option(False, help="Train without, and judge on, held-out images."),
    results: str = typer.Option("runs/splicing.jsonl", help="A line a finished run; resumed."),
    out: str = typer.Option("", help="The page to write; it is printed in any case."),
    done: bool = typer.Option(False, help="Run nothing; make the page of what is finished."),
) -> None:
    """Run what is missing, and make the page."""
    on_cpu = [name for name in RECIPES if name not in ON_GPU]
    nets, seeds, scale = ([QUICK], 1, 0.1) if quick else ([net] if net else on_cpu, seeds, 1.0)
    todo = cells(nets, seeds, scale, validation)
    if done:
        finished = read(Path(results), Cell)
        records = [finished[cell] for cell in todo if cell in finished]
    else:
        train_bases(((name, seed, validation) for name, seed in product(nets, range(seeds))), jobs)
        records = run_cells(run, todo, results, jobs, line)
    recipes = {name: told(RECIPES[name]) for name in nets}
    page = document(records, called("splicing", quick, seeds), recipes, len(todo))
    print(page)
    if out:
        write_text(out, page)


if __name__ == "__main__":
    typer.run(main)
