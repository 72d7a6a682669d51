"""Optimal Brain Damage on digits: predicted against true change, with and without retraining.

Source: LeCun, Denker, Solla, Optimal Brain Damage (1990), figures 1 and 2, on a network of the same
form: two convolutions with averaging, hyperbolic tangents, squared error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import typer
from cells import SEEDS, called, run_cells
from torch import Tensor, nn

from secateurs.atomic import write_text
from secateurs.data.mnist import load
from secateurs.sparse.saliency import Random, Saliency, find_saliency

FORMS = ("plain", "hidden")
METHODS = ("obd", "magnitude", "random")  # retrained too; gauss-newton predicts alone
PREDICTED = ("obd", "gauss-newton")
FRACTIONS = tuple(n / 40 for n in range(1, 25))  # deleted at once, up to 60%
JUDGED = 0.3  # up to here, the prediction is judged
STAGES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)  # deleted one after another
HELD = 0.6  # up to here, the objective should hold
EPOCHS, RETRAIN, RATE, RETRAIN_RATE, BATCH = 30, 6, 3e-3, 2e-3, 64
TRAIN, HELD_OUT = 6_000, 5_000


@dataclass(frozen=True)
class Cell:
    """One network, of one seed; `validation` measures on held-out images, not the test set."""

    seed: int
    validation: bool = False
    scale: float = 1.0
    form: str = "hidden"


@dataclass(frozen=True)
class Part:
    """Images (N, 1, 16, 16) and labels (N,)."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Pairs of images and targets, (size, 10) of 1 and −1."""
        targets = 2 * F.one_hot(self.labels, 10).float() - 1
        return list(zip(self.images.split(size), targets.split(size), strict=True))

    def shuffled(self, generator: torch.Generator) -> Part:
        order = torch.randperm(len(self.images), generator=generator)
        return Part(self.images[order], self.labels[order])


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The objective: one value per example."""
    return (output - target).square().sum(1)


def data(cell: Cell) -> tuple[Part, Part]:
    """The images to train on, drawn by the seed, and those to measure on."""
    images, labels = small("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cell.seed))
    first, last = order[: round(TRAIN * cell.scale)], order[-HELD_OUT:]
    other = (images[last], labels[last]) if cell.validation else small("test")
    return Part(images[first], labels[first]), Part(*other)


def small(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """MNIST at the paper's 16 × 16 pixels, which the digits fill as they do there.

    Without its border: hidden neurons sum what never changes until they are saturated.
    """
    images, labels = load(split)
    return F.adaptive_avg_pool2d(images[..., 4:24, 4:24], 16), labels


def network(form: str) -> nn.Sequential:
    """'plain', of 2,478 parameters (the paper's network has 2,578), or 'hidden', of 6,648."""
    first = [nn.Conv2d(1, 4, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 12, 3), nn.Tanh()]
    if form == "plain":
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(192, 10))
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(192, 30), nn.Tanh(), nn.Linear(30, 10))


class Pruned:
    """A network, which of its parameters are kept, and what it is trained and measured on."""

    def __init__(self, cell: Cell):
        torch.manual_seed(cell.seed)
        self.train, self.test = data(cell)
        self.model = network(cell.form)
        self.draw = torch.Generator().manual_seed(cell.seed)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.kept = torch.ones(len(self.weights), dtype=torch.bool)

    @property
    def weights(self) -> Tensor:
        """All parameters in one vector."""
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def put(self, weights: Tensor) -> None:
        """Parameters from one vector, without those that are deleted."""
        nn.utils.vector_to_parameters(weights * self.kept, self.model.parameters())

    def tune(self, epochs: int, rate: float) -> None:
        """Adam with a cosine; what is deleted stays away."""
        updates = epochs * (len(self.train.images) // BATCH)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        for _ in range(epochs):
            batches = self.train.shuffled(self.draw).batches(BATCH)
            for images, target in batches[: updates // epochs]:
                optimizer.zero_grad()
                squared_error(self.model(images), target).mean().backward()
                optimizer.step()
                schedule.step()
                self.put(self.weights)

    def saliency(self, saliency: Saliency) -> Tensor:
        """Of all parameters in one vector."""
        found = saliency.of(self.model, self.names, self.train.batches(500), loss=squared_error)
        return torch.cat([found[name].flatten().double() for name in self.names])

    def delete(self, saliency: Tensor, fraction: float) -> Tensor:
        """Delete the lowest until a fraction is gone; which went.

        Those that are gone already count as lower than all others.
        """
        order = torch.where(self.kept, saliency, -1.0).argsort()
        gone = order[: round(fraction * len(order))]
        self.kept[gone] = False
        self.put(self.weights)
        return gone

    @torch.no_grad()
    def measure(self, parts: Sequence[str] = ("train", "test")) -> dict[str, float]:
        """The objective on each part, and the error (%) on the last."""
        found = {}
        for name in parts:
            part = getattr(self, name)
            outputs = torch.cat([self.model(images) for images in part.images.split(1000)])
            targets = part.batches(len(outputs))[0][1]
            found[name] = squared_error(outputs, targets).mean().item()
        wrong = outputs.argmax(1) != part.labels
        return {**found, "error": 100 * wrong.float().mean().item()}


def method(name: str, seed: int) -> Saliency:
    return Random(seed) if name == "random" else find_saliency(name)


def run(cell: Cell) -> tuple[Cell, dict]:
    """Train, then delete: at once for the prediction, and in stages with retraining.

    The plain network is there for the prediction alone.
    """
    methods = METHODS if cell.form == "hidden" else ()
    net = Pruned(cell)
    epochs, retrain = max(1, round(EPOCHS * cell.scale)), max(1, round(RETRAIN * cell.scale))
    net.tune(epochs, RATE)
    base, trained, draw = net.measure(), net.weights, net.draw.get_state()
    out: dict = {"base": base, "parameters": len(trained), "at_once": {}, "retrained": {}}
    out["predicted"], out["seconds"] = {}, {}
    for name in dict.fromkeys((*methods, *PREDICTED)):
        started = time.perf_counter()
        saliency = net.saliency(method(name, cell.seed))
        out["seconds"][name] = time.perf_counter() - started
        out["at_once"][name] = []
        for fraction in sorted({*STAGES, *(FRACTIONS if name in PREDICTED else ())}):
            gone = net.delete(saliency, fraction)
            parts = ("train", "test") if fraction in STAGES else ("train",)
            out["at_once"][name].append({"fraction": fraction, **net.measure(parts)})
            out["predicted"].setdefault(name, []).append(saliency[gone].sum().item())
            net.kept[:] = True
            net.put(trained)
    for name in (*methods, "dense") if methods else ():
        net.draw.set_state(draw)
        steps = out["retrained"][name] = []
        for fraction in STAGES:
            if name != "dense":  # which is trained for as long, and keeps all
                net.delete(net.saliency(method(name, cell.seed)), fraction)
            net.tune(retrain, RETRAIN_RATE)
            steps.append({"fraction": fraction, **net.measure()})
        net.kept[:] = True
        net.put(trained)
    return cell, out


def correlation(record: dict, name: str) -> float:
    """Pearson's r of predicted and true change of the training objective, up to JUDGED."""
    steps = [s for s in record["at_once"][name] if s["fraction"] <= JUDGED + 1e-9]
    true = [s["train"] - record["base"]["train"] for s in steps]
    return float(np.corrcoef(record["predicted"][name][: len(true)], true)[0, 1])


def changes(record: dict, name: str, fraction: float) -> tuple[float, float]:
    """The predicted and the true change of the training objective."""
    steps = record["at_once"][name]
    at = next(i for i, s in enumerate(steps) if abs(s["fraction"] - fraction) < 1e-9)
    return record["predicted"][name][at], steps[at]["train"] - record["base"]["train"]


def values(records: Sequence[dict], of: str, name: str, fraction: float, what: str) -> list[float]:
    """A measure of every seed at a fraction deleted; of the base where nothing is."""
    if not fraction:
        return [r["base"][what] for r in records]
    return [
        next(s[what] for s in r[of][name] if abs(s["fraction"] - fraction) < 1e-9) for r in records
    ]


def spread(numbers: Sequence[float], form: str = ".3f") -> str:
    """Mean ± standard deviation."""
    text = f"{mean(numbers):{form}}"
    text += f" ± {stdev(numbers):{form.lstrip('+')}}" if len(numbers) > 1 else ""
    return text.replace("-", "−")


def main(
    quick: bool = typer.Option(False, help="One seed, a quarter of the images and updates."),
    seeds: int = typer.Option(SEEDS, help="Seeds, from 0."),
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    validation: bool = typer.Option(False, help="Measure on held-out images, for choices."),
    results: str = typer.Option("runs/obd.jsonl", help="A line a run; done ones are kept."),
    out: str = typer.Option("", help="The page to write; its pictures are put beside it."),
) -> None:
    """Run what is not yet in the results, and make the page and the pictures."""
    from obd_page import document, draw  # what writes the page reads what is above

    started = time.perf_counter()
    seeds, scale = (1, 0.25) if quick else (seeds, 1.0)
    cells = [Cell(s, validation, scale, form) for form in FORMS for s in range(seeds)]
    records = run_cells(run, cells, results, jobs, _say)
    page = document(records, called("obd", quick, seeds))
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        draw(records, Path(out))
        write_text(out, page)


def _say(record: dict) -> str:
    found = ", ".join(f"{name} {correlation(record, name):.3f}" for name in PREDICTED)
    last = {name: round(steps[-1]["train"], 3) for name, steps in record["retrained"].items()}
    return f"{record['form']} seed {record['seed']}: r {found}; retrained to the end: {last}"


if __name__ == "__main__":
    typer.run(main)
