"""Molchanov's correlation table on open data: every criterion against the exact oracle.

`secateurs.compare` computes the oracle and the scores, in processes, a line each; see
docs/results/correlation.md for what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import typer
from cells import SEEDS, called, spread_over, train_bases
from tasks import TASKS
from torch import nn
from versus_table import markdown

import secateurs as sc
from secateurs.atomic import write_text
from secateurs.compare.comparison import Comparison
from secateurs.compare.statistics import Coefficients, Correlation, Estimate
from secateurs.criteria import CRITERIA as ALL

NETWORKS = ("lenet5", "vgg-cifar", "vgg-fashion", "alexnet-cifar", "alexnet-fashion")
NORMED = "vgg-bn-cifar"  # BatchNorm scales are a criterion too
PAPER = "VGG-16, Birds-200 (2016)"
PAPERS = {  # Molchanov et al. 2016, table 1: per layer, all layers, all layers with ℓ2
    "taylor": (0.73, 0.14, 0.73),
    "obd": (0.59, 0.65, None),
    "activation": (0.56, 0.35, 0.64),
    "activation-std": (0.57, 0.30, 0.66),
    "apoz": (0.35, 0.43, 0.51),
    "information-gain": (0.28, 0.35, 0.47),
    "weight": (0.27, 0.34, 0.33),
}
CRITERIA = [name for name in ALL if not name.startswith("oracle")]
RIVALS = ("activation", "activation-std", "weight", "random")
FORMS: Mapping[str, Callable[[Coefficients], Estimate | None]] = {
    "Per layer": lambda found: found.per_layer,
    "All layers": lambda found: found.all_layers,
    "All layers, each with its ℓ2 norm": lambda found: found.all_l2,
}
Found = Mapping[str, Sequence[Comparison]]  # network -> one for each seed


def compare(task_name: str, seed: int, examples: int, folder: Path, jobs: int) -> Comparison:
    """The oracle and every criterion, over the same training images as they are."""
    task = TASKS[task_name]
    train, _ = task.data(False)
    batches = train.sample(examples, seed)
    return sc.compare(
        task.trained(seed, False),
        batches[0][0][:1],
        data=batches,
        loss=nn.CrossEntropyLoss(reduction="none"),
        criteria=CRITERIA,
        seeds=(seed,),
        examples=examples,
        forms=(),
        sensitivity=(),
        shard=2,
        out=folder / f"{task_name}-seed{seed}",
        resume=True,
        engine="processes",
        jobs=jobs,
        progress=False,
    )


def document(found: Found, command: str) -> str:
    """The page, in Markdown."""
    one = next(iter(found.values()))[0]
    machine, seeds = one.setting.machine, len(next(iter(found.values())))
    return f"""# Which criterion agrees with the oracle

`{command}` computes the figures and writes this page: table 1 of Molchanov et al. (2016) on open
data, for every criterion: Spearman's rank correlation with the oracle |C(g_i = 0) − C(1)|, which is
exact, over {one.setting.examples:,} training images. The nets are trained from scratch by the
command, and have no BatchNorm unless it is said; the paper's VGG-16 was fine-tuned on Birds-200.
Figures are {spread_over(seeds)}. Intervals are in the tables of each net.

{_networks(found)}

## Is Taylor ahead?

{_verdicts(found)}

{_why(found)}

{_summaries(found)}

## Each net, with intervals

95% intervals are bootstraps over units within their layer, the mean of those of the base networks;
what other images would change is not in them. `refused` criteria need what the net has not.

{_details(found)}

## What it does not say

- Agreement with the oracle is about one unit at a time, on training images. What is left after many
  are cut and the network is fine-tuned is another question: see
  [iterative and one-shot](iterative.md).
- The paper's figures are of a larger network and 200 classes; two of them (APoZ and OBD) are quoted
  from memory of the paper.
- The oracle is of the same images that the scores are taken over, as in the paper.

{machine["processor"]}, {machine["platform"]}, one thread a process; torch {machine["torch"]}.
"""


def _networks(found: Found) -> str:
    rows = []
    for name, runs in found.items():
        size, losses = runs[0].setting.size, [run.setting.loss for run in runs]
        row = [TASKS[name].title, f"{size['macs'] / 1e6:.1f}", f"{size['params']:,}"]
        row += [size["units"], told(losses, 3)]
        rows.append([*row, f"{mean(_oracle_seconds(run) for run in runs):.1f}"])
    columns = ["network", "million MACs", "parameters", "units", "training loss"]
    return markdown([*columns, "seconds of the oracle"], rows)


def _oracle_seconds(run: Comparison) -> float:
    return float("nan") if run.oracle is None else run.oracle.price.seconds


def correlations(run: Comparison) -> dict[str, Correlation]:
    """Criterion -> its correlation."""
    return {one.criterion: one for one in run.correlations()}


def values(runs: Sequence[Comparison], criterion: str, form: str) -> list[Estimate]:
    """One estimate for each base network that has one."""
    per_run = [correlations(run).get(criterion) for run in runs]
    found = [FORMS[form](one.spearman) for one in per_run if one is not None]
    return [one for one in found if one is not None]


def _summaries(found: Found) -> str:
    names = list(dict.fromkeys(n for runs in found.values() for n in runs[0].setting.criteria))
    parts = []
    for number, form in enumerate(FORMS):
        rows = []
        for criterion in names:
            paper = PAPERS.get(criterion, (None,) * 3)[number]
            own = [values(runs, criterion, form) for runs in found.values()]
            figures = [told([one.value for one in each]) if each else "–" for each in own]
            mine = [mean(one.value for one in each) for each in own if each]
            if mine:
                row = [f"`{criterion}`", "–" if paper is None else f"{paper:.2f}", *figures]
                rows.append((mean(mine), row))
        rows.sort(key=lambda pair: -pair[0])
        columns = ["criterion", PAPER, *(TASKS[name].title for name in found)]
        parts.append(f"## {form}\n\n{markdown(columns, [row for _, row in rows])}")
    return "\n\n".join(parts)


def _details(found: Found) -> str:
    parts = []
    for name, runs in found.items():
        rows = []
        for criterion in runs[0].setting.criteria:
            cells = [_interval(values(runs, criterion, form)) for form in FORMS]
            rows.append([f"`{criterion}`", *cells])
        rows = [row for row in rows if row[1] != "–"]
        refused = [f"`{name}`" for name in runs[0].refused()]
        note = f"\n\nRefused: {', '.join(refused)}." if refused else ""
        columns = ["criterion", *(form.lower() for form in FORMS)]
        parts.append(f"### {TASKS[name].title}\n\n{markdown(columns, rows)}{note}")
    return "\n\n".join(parts)


def means(estimates: Sequence[Estimate]) -> tuple[float, float, float]:
    """Of value, low and high, over base networks."""
    return (
        mean(one.value for one in estimates),
        mean(one.low for one in estimates),
        mean(one.high for one in estimates),
    )


def _interval(estimates: Sequence[Estimate]) -> str:
    if not estimates:
        return "–"
    value, low, high = means(estimates)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def _verdicts(found: Found) -> str:
    """For each net: Taylor less the best of the criteria that it is said to be ahead of."""
    rows = [
        [TASKS[name].title, *(_verdict(runs, form) for form in FORMS)]
        for name, runs in found.items()
    ]
    table = markdown(["network", *(form.lower() for form in FORMS)], rows)
    rivals = ", ".join(f"`{rival}`" for rival in RIVALS)
    return f"""Taylor less the best of {rivals}, with the 95% interval of
the difference, whose draws both share; level where it spans 0. (`obd`, `fisher` and other forms of
Taylor look at the same gradients; see the tables.)

{table}"""


def _verdict(runs: Sequence[Comparison], form: str) -> str:
    ours = values(runs, "taylor", form)
    rivals = {name: values(runs, name, form) for name in RIVALS}
    known = {name: mean(e.value for e in each) for name, each in rivals.items() if each}
    best = max(known, key=lambda name: known[name])
    gaps = [own - other for own, other in zip(ours, rivals[best], strict=True)]
    value, low, high = means(gaps)
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
    text = f"{verdict}, {value:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
    return f"{text} (`{best}`)"


def _why(found: Found) -> str:
    """What the division by a map's positions does to scores that are not scaled."""
    divided, whole = (
        [mean(e.value for e in values(runs, name, "All layers")) for runs in found.values()]
        for name in ("taylor", "taylor-gate")
    )
    pairs = ", ".join(f"{a:.2f} → {b:.2f}" for a, b in zip(divided, whole, strict=True))
    fitted = min(found, key=lambda name: mean(run.setting.loss for run in found[name]))
    first, squared, second = (
        mean(e.value for e in values(found[fitted], name, "Per layer"))
        for name in ("taylor", "taylor-squared", "taylor-second")
    )
    chance = [
        mean(e.value for e in values(runs, "random", list(FORMS)[-1])) for runs in found.values()
    ]
    return f"""Over all layers, with scores as they are, the paper has Taylor last (0.14). Its
formula is the mean over the M positions of a map, so maps of many positions seem unimportant beside
those of few. M here counts the positions that the next layer reads: behind a pooling they are fewer
than those of the map in the paper's equation 7, and the score is larger by the area of the pooling.
`taylor-gate`, the derivative by the gate, is the same without the division, and ranks
alike within a layer. With it the correlation over all layers becomes, in the order of the networks:
{pairs}.

Divided by its ℓ2 norm a layer of n units has scores of about 1/√n, so the units of small layers
stand above those of large ones whatever the criterion, as to the oracle they mostly do: `random`
alone has {min(chance):.2f} to {max(chance):.2f} there. What a criterion adds is what it has beyond.

A network that fits its images leaves little gradient to expand by. On that of the least training
loss, {TASKS[fitted].title}, `taylor` has {first:.2f} per layer; `taylor-squared`, whose square is
of the mean over examples, as the oracle is, {squared:.2f}; and with the second order,
`taylor-second`, {second:.2f}."""


def told(numbers: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    text = f"{mean(numbers):.{digits}f}"
    return (f"{text} ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else text).replace("-", "−")


def main(
    quick: bool = typer.Option(False, help="Two small nets, one seed, 256 images."),
    seeds: int = typer.Option(SEEDS, help="Seeds, from 0, each with its own base network."),
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    folder: str = typer.Option("runs/correlation", help="A comparison a folder; resumed."),
    out: str = typer.Option("", help="The page to write; it is printed in any case."),
) -> None:
    """Compute what is missing, and make the page."""
    started = time.perf_counter()
    names = ("lenet5", "alexnet-fashion") if quick else (*NETWORKS, NORMED)
    seeds, examples = (1, 256) if quick else (seeds, 1024)
    train_bases(((name, seed, False) for name, seed in product(names, range(seeds))), jobs)
    found = {
        name: [compare(name, seed, examples, Path(folder), jobs) for seed in range(seeds)]
        for name in names
    }
    page = document(found, called("correlation", quick, seeds))
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        write_text(out, page)


if __name__ == "__main__":
    typer.run(main)
