"""FLOPs regularisation: the error against MACs with Θ − λΘ_flops, and which layers lose units.

Source: Molchanov et al. (2016), section 2.2, 'FLOPs regularized pruning', and the figures of
section 3.2 that show it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import typer
from cells import SEEDS, called, machine, run_cells, spread_over, train_bases
from tasks import TASKS, fine_tune
from torch import nn
from versus_table import markdown

import secateurs as sc
from secateurs.atomic import write_text
from secateurs.process.stream import Stream

TASK, SMALL = "vgg-cifar", "alexnet-fashion"  # the second is that of the quick form
WEIGHTS = (0.0, 1e-3, 1e-2, 3e-2, 1e-1)  # λ; the second is the default
ROUNDS = 25
TESTED = 2_000  # test images that each step is measured on
SMALLEST = 0.1
SHOWN = (0.75, 0.5, 0.25, SMALLEST)


@dataclass(frozen=True)
class Cell:
    """One pruning run; `scale` is of the number of updates."""

    weight: float
    seed: int
    scale: float = 1.0
    task: str = TASK


def run(cell: Cell) -> tuple[Cell, dict]:
    """Prune step by step with Taylor, measuring after each."""
    task = TASKS[cell.task]
    train, test = task.data(False)
    held_out, model = test.part(slice(TESTED)), task.trained(cell.seed, False)
    batches = Stream(train, cell.seed + 1000)

    def tune(model: nn.Module, updates: int) -> None:
        fine_tune(model, batches.take(updates), updates, task.lr)

    result = sc.prune(
        model,
        train.standardised(slice(1)),
        train=train,
        budget={"macs": SMALLEST},
        loss=nn.CrossEntropyLoss(reduction="none"),
        evaluate=held_out.error,
        metric="error",
        mode="min",
        finetune=tune,
        step=1 / ROUNDS,
        updates=round(task.each * cell.scale),
        final=0,
        flops_weight=cell.weight,
        device="cpu",
        seed=cell.seed,
        progress=False,
    )
    sizes = {group.name: group.size for group in result.network.groups}
    return cell, {
        "macs": [record["macs"] for record in result.history],
        "params": [record["params"] for record in result.history],
        "error": [record["metric"] for record in result.history],
        "sizes": sizes,
        "kept": [kept(sizes, result.history, step) for step in range(len(result.history))],
    }


def kept(sizes: dict[str, int], history: Sequence[dict], step: int) -> dict[str, int]:
    """Group -> units left after so many steps."""
    gone = [record["removed"] for record in history[: step + 1]]
    return {name: size - sum(one.get(name, 0) for one in gone) for name, size in sizes.items()}


def at(record: dict, fraction: float, of: str = "error") -> float:
    """A measure of a run where it crosses a fraction of the MACs, on a line between two steps."""
    macs = np.array(record["macs"]) / record["macs"][0]
    return float(np.interp(-fraction, -macs, record[of]))


def steps(record: dict, fraction: float) -> int:
    """How many removals a run takes to come down to a fraction of the MACs."""
    goal = fraction * record["macs"][0]
    return next(step for step, macs in enumerate(record["macs"]) if macs <= goal)


def document(records: Sequence[dict], command: str) -> str:
    """The page, in Markdown."""
    weights = list(dict.fromkeys(record["weight"] for record in records))
    runs = {w: [r for r in records if r["weight"] == w] for w in weights}
    task = TASKS[records[0]["task"]]
    each = round(task.each * records[0]["scale"])
    macs, params = records[0]["macs"][0], records[0]["params"][0]
    return f"""# FLOPs regularisation

`{command}` runs the cells, draws the picture and writes this page: Θ − λΘ_flops of Molchanov et al.
(2016), section 2.2. The network is {task.title}: {macs / 1e6:.1f} million MACs and {params:,}
parameters. It is pruned by Taylor with ℓ2 over the layers, in steps of 1/{ROUNDS} of its units with
{each} weight updates after each and none at the end. Θ_flops is relative to the costliest unit, so
that λ suits any network; the paper's λ = 10⁻³ is of another scale. Figures are
{spread_over(len(runs[weights[0]]))}; errors are on {TESTED:,} test images.

![Error against MACs for each λ](flops.svg)

Error (%) where the run crosses a fraction of the MACs (on a line between two steps):

{_errors(runs)}

Parameters left there (%):

{_parameters(runs)}

Weight updates until the first step at or below it. They follow removals, so a λ that comes down to
the same MACs in fewer removals has had fewer updates there: the errors above are not of λ alone.

{_updates(runs, each)}

Units left (%) of each layer at {SHOWN[-2]:.0%} of the MACs, from the input to the output:

{_layers(runs)}

{_verdict(runs)}

Each of these is the best of {len(weights)} on the test images that it is judged by, which flatters
it. {TESTED:,} images leave a standard error of about a point in each figure, less in the
differences, which are on the same images.

{_trend(runs)}

{machine()}.
"""


def _errors(runs: dict[float, list[dict]]) -> str:
    rows = []
    for weight, own in runs.items():
        uncut = spread([r["error"][0] for r in own])
        rows.append([weight, uncut, *(spread([at(r, f) for r in own]) for f in SHOWN)])
    return markdown(["λ", "uncut", *(f"{f:.0%} of the MACs" for f in SHOWN)], rows)


def _parameters(runs: dict[float, list[dict]]) -> str:
    rows = [
        [weight, *(f"{parameters_left(own, f):.0f}" for f in SHOWN)] for weight, own in runs.items()
    ]
    return markdown(["λ", *(f"{f:.0%} of the MACs" for f in SHOWN)], rows)


def _updates(runs: dict[float, list[dict]], each: int) -> str:
    rows = [
        [weight, *(f"{each * mean(steps(r, f) for r in own):.0f}" for f in SHOWN)]
        for weight, own in runs.items()
    ]
    return markdown(["λ", *(f"{f:.0%} of the MACs" for f in SHOWN)], rows)


def _layers(runs: dict[float, list[dict]]) -> str:
    """From the first step at or below the fraction."""
    sizes = next(iter(runs.values()))[0]["sizes"]
    rows = [
        [weight, *(f"{units_left(own, name):.0f}" for name in sizes)]
        for weight, own in runs.items()
    ]
    return markdown(["λ", *(f"`{name}` ({size})" for name, size in sizes.items())], rows)


def units_left(runs: Sequence[dict], layer: str) -> float:
    """Of a layer, in percent, at the fraction whose layers are shown."""
    left = [r["kept"][steps(r, SHOWN[-2])][layer] / r["sizes"][layer] for r in runs]
    return 100 * mean(left)


def parameters_left(runs: Sequence[dict], fraction: float) -> float:
    """In percent, where the runs cross a fraction of the MACs."""
    return 100 * mean(at(r, fraction, "params") / r["params"][0] for r in runs)


def _verdict(runs: dict[float, list[dict]]) -> str:
    """What the figures say of the regularisation, in a sentence for each fraction."""
    lines = []
    for fraction in SHOWN:
        means = {weight: mean(at(r, fraction) for r in own) for weight, own in runs.items()}
        best = min(means, key=lambda weight: means[weight])
        paired = [
            at(b, fraction) - at(a, fraction) for a, b in zip(runs[0.0], runs[best], strict=True)
        ]
        found = (
            f"the least error is that of λ = {best:g}: {spread(paired, sign='+')} points against "
            "λ = 0, paired by seed."
        )
        lines.append(
            f"- At {fraction:.0%} of the MACs {found if best else 'no λ has less error than 0.'}"
        )
    return "\n".join(lines)


def _trend(runs: dict[float, list[dict]]) -> str:
    """Which layers pay: what λ = 0 and the largest λ leave, and what those between do."""
    none, *_, most = runs
    left = {f: [parameters_left(own, f) for own in runs.values()] for f in SHOWN}
    ends = ", ".join(f"{row[0]:.0f}% → {row[-1]:.0f}%" for row in left.values())
    rises = [b > a for row in left.values() for a, b in pairwise(row)]
    first = next(iter(runs[none][0]["sizes"]))
    units = " → ".join(f"{units_left(runs[weight], first):.0f}%" for weight in (none, most))
    return f"""From λ = {none:g} to λ = {most:g} the parameters left at these MACs go {ends};
from each λ to the next they rise in {sum(rises)} of {len(rises)} cases. Of the first layer's units
{units} are left at {SHOWN[-2]:.0%} of the MACs."""


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation."""
    text = f"{mean(values):{sign}.1f}"
    return (f"{text} ± {stdev(values):.1f}" if len(values) > 1 else text).replace("-", "−")


def draw(records: Sequence[dict], path: Path) -> None:
    """Error against MACs, a line for each λ, in the style of the report's pictures."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from secateurs.atomic import write_with
    from secateurs.report.figures import KINDS

    with rc_context({"svg.hashsalt": "secateurs", "font.size": 9}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        fractions = np.linspace(SMALLEST, 1, 60)
        for weight in dict.fromkeys(record["weight"] for record in records):
            own = [[at(r, f) for f in fractions] for r in records if r["weight"] == weight]
            middle, width = np.mean(own, 0), np.std(own, 0, ddof=1) if len(own) > 1 else 0
            (line,) = axes.plot(100 * fractions, middle, label=f"λ = {weight:g}")
            if len(own) > 1:
                band = (middle - width, middle + width)
                axes.fill_between(100 * fractions, *band, color=line.get_color(), alpha=0.12)
        axes.invert_xaxis()
        axes.set_xlabel("MACs left (%)")
        axes.set_ylabel("test error (%)")
        axes.legend(frameon=False)
        write_with(path, lambda place: figure.savefig(place, format="svg", **KINDS["svg"]))


def main(
    quick: bool = typer.Option(False, help="Three λ, one seed, a third of the updates."),
    seeds: int = typer.Option(SEEDS, help="Seeds, from 0."),
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    results: str = typer.Option("runs/flops.jsonl", help="A line a run; done ones are kept."),
    out: str = typer.Option("", help="The page to write; its picture is put beside it."),
) -> None:
    """Run what is not yet in the results, and make the page and the picture."""
    started = time.perf_counter()
    if quick:
        seeds, cells = 1, [Cell(weight, 0, 0.33, SMALL) for weight in WEIGHTS[::2]]
    else:
        cells = [Cell(weight, seed) for seed in range(seeds) for weight in WEIGHTS]
    train_bases(((cell.task, cell.seed, False) for cell in cells), jobs)
    records = run_cells(run, cells, results, jobs, _say)
    page = document(records, called("flops", quick, seeds))
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        draw(records, Path(out).with_suffix(".svg"))
        write_text(out, page)


def _say(record: dict) -> str:
    errors = ", ".join(f"{at(record, fraction):.1f}% at {fraction:.0%}" for fraction in SHOWN)
    return f"λ {record['weight']:g} seed{record['seed']}: {errors}"


if __name__ == "__main__":
    typer.run(main)
