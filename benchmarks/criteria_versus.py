"""Every criterion of Torch-Pruning that has a twin here beside ours, at equal MACs and updates.

The cells are those of `versus.py`. Each side also chooses its criterion on held-out training
images, with a base network that has not seen them; the test images are only measured on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

import typer
from cells import SEEDS, called, machine, run_cells, train_bases
from tasks import TASKS
from twins import TWINS
from versus import NETWORKS, OPTIONS, SIDES, Cell, run, say
from versus_table import Estimate, markdown, pairs

from secateurs.atomic import write_text

NORMED = {"resnet8"}  # have BatchNorm
MACS = 0.25
QUICK = ("taylor", "l2", "l1", "lamp", "fpgm", "random")  # the others take Torch-Pruning minutes


def cells(
    networks: Sequence[str], seeds: int, scale: float, criteria: Sequence[str] = tuple(TWINS)
) -> list[Cell]:
    """One seed on held-out images for the choice, then all seeds on the test images."""
    return [
        Cell(network, name, MACS, seed, side, held_out, scale, options=OPTIONS * (side == "ours"))
        for held_out, count in ((True, 1), (False, seeds))
        for network in networks
        for name in criteria
        if network in NORMED or not TWINS[name].norm
        for seed in range(count)
        for side in SIDES
    ]


def chosen(records: Sequence[dict]) -> dict[tuple[str, str], str]:
    """(network, side) -> the criterion of the least error on held-out images."""
    errors: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        if r["validation"]:
            own = errors.setdefault((r["task"], r["side"]), {})
            own.setdefault(r["criterion"], []).append(r["error"])
    return {key: min(own, key=lambda name: mean(own[name])) for key, own in errors.items()}


def document(records: Sequence[dict], command: str) -> str:
    """The page, in Markdown."""
    tested = [r for r in records if not r["validation"]]
    seeds, scale = len({r["seed"] for r in tested}), tested[0]["scale"]
    updates = ", ".join(
        f"{TASKS[name].title}: {round(TASKS[name].updates * scale)}"
        for name in dict.fromkeys(r["task"] for r in tested)
    )
    return f"""# Criterion by criterion beside Torch-Pruning 1.6.1

`{command}` runs the cells and writes this page. Both tools cut the same trained network to at most
{MACS:.0%} of its MACs with criteria that ask the same question, and get the same number of weight
updates ({updates}); see [the comparison of the tools](versus.md) for how. Seeds: {seeds}, each
with its own base network; ± is the standard error over them.

{_choice(records)}

{_table(records)}

## What it does not say

- The twins are not the same formula. Torch-Pruning averages over every tensor that its group holds,
  readers and BatchNorm scales too, and divides by the group's mean; ours look at one place, and are
  made comparable over layers by the ℓ2 norm and `{OPTIONS}`. Its `GroupHessianImportance`
  keeps the last example of those it is given, and `ActivationImportance` the last batch.
- `{OPTIONS}` was chosen for our side alone, on held-out images of these same networks;
  Torch-Pruning keeps its defaults, unsearched.
- Nothing in Torch-Pruning's ranking weighs what a unit costs. Where a criterion finds most units of
  a cheap layer idle, that layer goes nearly whole before the MACs are met: see the parameters left.
- The criterion is chosen from one seed on held-out images, so a near tie may fall either way.
- `OBDCImportance` is left out: it must be wired into the pruner's inside. BatchNorm scales need a
  network that has them.
- Errors of one seed share a base network: overall means would look surer than they are.

{machine()}.
"""


def _choice(records: Sequence[dict]) -> str:
    best = chosen(records)
    tested = {
        (r["task"], r["side"], r["criterion"], r["seed"]): r["error"]
        for r in records
        if not r["validation"]
    }
    rows = []
    for task in dict.fromkeys(task for task, _ in best):
        errors = {
            side: [
                error
                for (name, own, criterion, _), error in tested.items()
                if (name, own, criterion) == (task, side, best[task, side])
            ]
            for side in SIDES
        }
        difference = Estimate.of([a - b for a, b in zip(*errors.values(), strict=True)])
        row = [TASKS[task].title]
        for side in SIDES:
            row += [TWINS[best[task, side]].called(side), f"{mean(errors[side]):.2f}"]
        rows.append([*row, difference])
    columns = ["network", "ours: chosen", "test error (%)", "theirs: chosen", "test error (%)"]
    columns.append("ours − theirs (points)")
    return f"Chosen on held-out images:\n\n{markdown(columns, rows)}"


def _table(records: Sequence[dict]) -> str:
    validation = {
        (r["task"], r["criterion"], r["side"]): r["error"] for r in records if r["validation"]
    }
    rows = []
    for (task, criterion, _), runs in pairs(r for r in records if not r["validation"]).items():
        row = [TASKS[task].title, *map(TWINS[criterion].called, SIDES)]
        row += [f"{validation[task, criterion, side]:.2f}" for side in SIDES]
        row += [f"{mean(pair.ours['error'] for pair in runs):.2f}"]
        row += [f"{mean(pair.theirs['error'] for pair in runs):.2f}"]
        row.append(str(Estimate.of([pair.difference for pair in runs])))
        sides = [pair.ours for pair in runs], [pair.theirs for pair in runs]
        row += [f"{mean(r['macs_left'] / r['macs_before'] for r in side):.1%}" for side in sides]
        row += [f"{mean(r['params_left'] for r in side):,.0f}" for side in sides]
        rows.append(row)
    columns = ["network", "ours", "theirs", "held-out error (%), ours", "theirs"]
    columns += ["test error (%), ours", "theirs", "ours − theirs (points)"]
    columns += ["MACs left, ours", "theirs", "parameters left, ours", "theirs"]
    return f"Criterion by criterion:\n\n{markdown(columns, rows)}"


def main(
    quick: bool = typer.Option(
        False, help="LeNet-5, six criteria, one seed, a tenth of the updates."
    ),
    seeds: int = typer.Option(SEEDS, help="Seeds, from 0."),
    jobs: int = typer.Option(2, help="Processes, of one thread each."),
    results: str = typer.Option("runs/criteria-versus.jsonl", help="A line a run."),
    out: str = typer.Option("", help="The page to write; it is printed in any case."),
) -> None:
    """Run what is not yet in the results, and make the page."""
    started = time.perf_counter()
    if quick:
        seeds, todo = 1, cells(NETWORKS[:1], 1, 0.1, QUICK)
    else:
        todo = cells(NETWORKS, seeds, 1.0)
    train_bases(((cell.task, cell.seed, cell.validation) for cell in todo), jobs)
    records = run_cells(run, todo, results, jobs, say)
    page = document(records, called("criteria-versus", quick, seeds))
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        write_text(out, page)


if __name__ == "__main__":
    typer.run(main)
