"""Secateurs against Torch-Pruning: the same networks, MACs, updates, batches and seeds.

Torch-Pruning is used as its README says: `BasePruner` over the whole model with the classifier
ignored, global, in many small iterative steps until the MACs are met, with
`GroupTaylorImportance` (gradients of the loss accumulated before each removal) or
`GroupMagnitudeImportance(p=2)`. The fine-tuning is one function for both sides; what differs is
which units go, and how they are cut.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import typer
from cells import run_cells, train_bases
from tasks import TASKS, Images, Task, count_macs, fine_tune
from torch import nn
from twins import SCORE_BATCHES, TWINS
from versus_table import document

import secateurs as sc
from secateurs.atomic import write_text
from secateurs.compare.price import Meter
from secateurs.process.stream import Stream

ROUNDS = 20  # a removal takes a twentieth of the original units
FINE = 20  # Torch-Pruning's steps in a removal, so that it meets the MACs as closely as we do
NETWORKS = ("lenet5", "resnet8")
FRACTIONS = (0.5, 0.25, 0.1)
OPTIONS = '{"cost_power": 0.5}'  # chosen with --validation
CRITERIA = ("taylor", "l2")


@dataclass(frozen=True)
class Cell:
    """One run: a side, on a network trained from a seed, to a fraction of its MACs."""

    task: str
    criterion: str
    macs: float
    seed: int
    side: str
    validation: bool = False
    scale: float = 1.0  # of the number of updates
    device: str = "cpu"
    options: str = ""  # of `secateurs.prune`, as JSON

    @property
    def name(self) -> str:
        return f"{self.task} {self.criterion} {self.macs} seed{self.seed} {self.side}"


def say(record: dict) -> str:
    """What is printed of a run when it ends."""
    cell = " ".join(str(record[name]) for name in ("task", "criterion", "macs", "seed", "side"))
    return f"{cell}: {record['error']:.2f}%"


@dataclass
class Tuning:
    """The fine-tuning of a run: how many updates are left, and what they took."""

    task: Task
    batches: Stream
    left: int
    seconds: float = 0.0
    rounds: int = 0

    def __call__(self, model: nn.Module, updates: int) -> None:
        started = time.perf_counter()
        updates = min(updates, self.left)
        fine_tune(model, self.batches.take(updates), updates, self.task.lr)
        self.left -= updates
        self.rounds += 1
        self.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class Job:
    """What both sides are given."""

    model: nn.Module
    example: torch.Tensor
    train: Images
    macs: int
    each: int
    criterion: str
    seed: int
    options: dict
    tune: Tuning


def ours(job: Job) -> nn.Module:
    return sc.prune(
        job.model,
        job.example,
        train=job.train,
        budget={"macs": job.macs},
        loss=nn.CrossEntropyLoss(reduction="none"),
        criterion=TWINS[job.criterion].ours,
        finetune=job.tune,
        step=1 / ROUNDS,
        updates=job.each,
        final=0,
        score_batches=SCORE_BATCHES,
        device=str(job.example.device),
        seed=job.seed,
        progress=False,
        **job.options,
    ).model


def theirs(job: Job) -> nn.Module:
    import torch_pruning as tp

    model, scoring = copy.deepcopy(job.model), Stream(job.train, job.seed)
    twin = TWINS[job.criterion]
    importance = twin.make()
    pruner = tp.pruner.BasePruner(
        model,
        job.example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=ROUNDS * FINE,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)][-1:],
    )
    while count_macs(model, job.example) > job.macs:
        for step in range(FINE):
            if step == 0 or twin.every_step:
                twin.show(importance, model, scoring.take(twin.batches))
            pruner.step()
            if count_macs(model, job.example) <= job.macs:
                break
        job.tune(model, job.each)
    return model


SIDES: dict[str, Callable[[Job], nn.Module]] = {"ours": ours, "theirs": theirs}


def run(cell: Cell) -> tuple[Cell, dict]:
    """Prune, fine-tune with all the updates that are left, and measure."""
    torch.manual_seed(cell.seed)
    task = TASKS[cell.task]
    train, held_out = task.data(cell.validation)
    model = task.trained(cell.seed, cell.validation).to(cell.device)
    example = train.standardised(slice(1)).to(cell.device)
    before = count_macs(model, example)
    tune = Tuning(task, Stream(train, cell.seed + 1000), round(task.updates * cell.scale))
    target, each = int(cell.macs * before), round(task.each * cell.scale)
    options = json.loads(cell.options or "{}")
    job = Job(model, example, train, target, each, cell.criterion, cell.seed, options, tune)
    with Meter(torch.device(cell.device)) as meter:
        started = time.perf_counter()
        small = SIDES[cell.side](job)
        cutting = time.perf_counter() - started - tune.seconds
    rounds, at_budget = tune.rounds, held_out.error(small)
    tune(small, tune.left)
    return cell, {
        "error_before": held_out.error(model),
        "error_at_budget": at_budget,
        "error": held_out.error(small),
        "macs_before": before,
        "macs_left": count_macs(small, example),
        "params_left": sum(p.numel() for p in small.parameters()),
        "rounds": rounds,
        "seconds": cutting + tune.seconds,
        "seconds_cutting": cutting,
        "peak_mb": None if (peak := meter.price.peak_bytes) is None else peak / 2**20,
        "torch": torch.__version__,
    }


def main(
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    device: str = typer.Option("cpu", help="Where networks are scored and trained."),
    only: str = typer.Option("", help="Regular expression for cells: 'lenet5 taylor 0.25 seed0'."),
    seeds: int = typer.Option(3, help="Seeds, from 0."),
    validation: bool = typer.Option(False, help="Measure on held-out training images."),
    scale: float = typer.Option(1.0, help="Of the number of weight updates."),
    options: str = typer.Option(
        OPTIONS, help="More options of secateurs.prune, as JSON; empty for its defaults."
    ),
    results: str = typer.Option(
        "runs/versus.jsonl", help="A line a run; what is there is not run again."
    ),
    out: str = typer.Option("", help="The page to write; it is printed in any case."),
) -> None:
    """Run what is not yet in the results, and make the table."""
    started = time.perf_counter()
    choices = product(NETWORKS, CRITERIA, FRACTIONS, range(seeds), SIDES)
    ours_alone = {"ours": options, "theirs": ""}
    cells = [Cell(*c, validation, scale, device, ours_alone[c[-1]]) for c in choices]
    cells = [cell for cell in cells if re.search(only, cell.name)]
    train_bases(((cell.task, cell.seed, cell.validation) for cell in cells), jobs)
    records = run_cells(run, cells, results, jobs, say)
    page = document(records)
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        write_text(out, page)


if __name__ == "__main__":
    typer.run(main)
