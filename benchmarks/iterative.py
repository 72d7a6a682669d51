"""Iterative against one-shot: the same updates after one cut, or spread over many.

`secateurs.compare` runs the experiments, in processes, a line each.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import typer
from cells import SEEDS, called, spread_over, train_bases
from correlation import told
from tasks import BATCH, TASKS, cosine, sgd
from torch import nn
from versus_table import Estimate, markdown

import secateurs as sc
from secateurs.atomic import write_text
from secateurs.compare.comparison import Comparison, Curve
from secateurs.compare.record import FORMS

NETWORKS = ("vgg-cifar", "alexnet-fashion")
CRITERIA = ("taylor", "weight", "random")
TESTED = 2_000  # test images that each network is measured on
ROUNDS = 10
Found = Mapping[str, Sequence[Comparison]]  # network -> one for each seed


def compare(name: str, seed: int, quick: bool, folder: Path, jobs: int) -> Comparison:
    """One base network cut in all ways."""
    task = TASKS[name]
    train, test = task.data(False)
    return sc.compare(
        task.trained(seed, False),
        train.standardised(slice(1)),
        data=train,
        loss=nn.CrossEntropyLoss(reduction="none"),
        evaluate=test.part(slice(TESTED)).error,
        metric="error",
        mode="min",
        criteria=CRITERIA[:2] if quick else CRITERIA,
        optimizer=partial(sgd, lr=task.lr),
        scheduler=cosine,
        seeds=(seed,),
        budgets=(0.25,) if quick else (0.5, 0.25, 0.1),
        updates=task.updates // 4 if quick else task.updates,
        rounds=ROUNDS,
        forms=FORMS,
        examples=640,
        oracle=False,
        sensitivity=(),
        out=folder / f"{name}-seed{seed}",
        resume=True,
        engine="processes",
        jobs=jobs,
        progress=False,
    )


def document(found: Found, command: str) -> str:
    """The page, in Markdown."""
    runs = next(iter(found.values()))
    setting, seeds = runs[0].setting, len(runs)
    networks = ", ".join(
        f"{TASKS[name].title} ({own[0].setting.updates} updates)" for name, own in found.items()
    )
    ranked = f"{setting.options['score_batches']} batches of {BATCH}"
    return f"""# Iterative and one-shot

`{command}` runs the experiments and writes this page. The same network is cut to a fraction of its
MACs in one go, or in rounds, and gets the same number of weight updates on the same batches:
{networks}. A round takes 1/{ROUNDS} of the network's units, ranked anew, and is followed by
1/{ROUNDS} of the updates; the rounds stop where the budget is met, and the updates
that are left come at the end. A round is ranked by {ranked} images, the one cut
by {setting.examples:,}: the scores of a round are noisier. The rate falls along a cosine in each
fine-tuning. Errors are on {TESTED:,} test images; figures are {spread_over(seeds)}.

{_errors(found)}

Iterative less fine-tuned after one cut, in points, paired by seed, ± the standard error:

{_differences(found)}

{setting.machine["processor"]}, {setting.machine["platform"]}, one thread a process; torch
{setting.machine["torch"]}.
"""


def errors(runs: Sequence[Comparison], form: str, criterion: str, budget: float) -> list[float]:
    """The error of each base network, cut one way."""
    curves: list[Curve] = [
        curve
        for run in runs
        for curve in run.curves()
        if (curve.form, curve.criterion) == (form, criterion)
    ]
    return [v for curve in curves for p in curve.points if p.budget == budget for v in p.values]


def _errors(found: Found) -> str:
    rows = []
    for name, runs in found.items():
        setting = runs[0].setting
        uncut = told([run.setting.metric or 0.0 for run in runs])
        for criterion, budget in product(setting.criteria, setting.budgets):
            row = [TASKS[name].title, f"`{criterion}`", f"{budget:.0%}", uncut]
            for form in FORMS:
                row.append(told(errors(runs, form, criterion, budget)))
            rows.append(row)
    columns = ["network", "criterion", "MACs", "uncut (%)", "one cut, no updates (%)"]
    return markdown([*columns, "one cut, then updates (%)", "iterative (%)"], rows)


def _differences(found: Found) -> str:
    budgets = next(iter(found.values()))[0].setting.budgets
    rows = []
    for name, runs in found.items():
        for criterion in runs[0].setting.criteria:
            row = [TASKS[name].title, f"`{criterion}`"]
            for budget in budgets:
                pairs = zip(
                    errors(runs, "iterative", criterion, budget),
                    errors(runs, "fine-tuned", criterion, budget),
                    strict=True,
                )
                row.append(str(Estimate.of([a - b for a, b in pairs])))
            rows.append(row)
    return markdown(["network", "criterion", *(f"{b:.0%} of the MACs" for b in budgets)], rows)


def main(
    quick: bool = typer.Option(False, help="One net, one seed, a quarter of the updates."),
    seeds: int = typer.Option(SEEDS, help="Seeds, from 0, each with its own base network."),
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    folder: str = typer.Option("runs/iterative", help="A comparison a folder; resumed."),
    out: str = typer.Option("", help="The page to write; it is printed in any case."),
) -> None:
    """Run what is missing, and make the page."""
    started = time.perf_counter()
    names, seeds = (NETWORKS[1:], 1) if quick else (NETWORKS, seeds)
    train_bases(((name, seed, False) for name, seed in product(names, range(seeds))), jobs)
    found = {
        name: [compare(name, seed, quick, Path(folder), jobs) for seed in range(seeds)]
        for name in names
    }
    page = document(found, called("iterative", quick, seeds))
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        write_text(out, page)


if __name__ == "__main__":
    typer.run(main)
