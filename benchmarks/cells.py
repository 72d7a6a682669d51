"""Experiments in processes of one thread each: a line each in a file, done once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TypeVar

import torch
from tasks import TASKS

from secateurs.atomic import write_text

SEEDS = 3  # of every full form
C = TypeVar("C")  # a frozen dataclass: what is run


def train_bases(bases: Iterable[tuple[str, int, bool]], jobs: int) -> None:
    """Train every (task, seed, held out) whose weights are not there."""
    bases = list(dict.fromkeys(bases))
    for task, validation in dict.fromkeys((task, validation) for task, _, validation in bases):
        TASKS[task].data(validation)  # fetched once, by this process
    todo = [base for base in bases if not TASKS[base[0]].weights(*base[1:]).exists()]
    if todo:
        with get_context("spawn").Pool(jobs, one_thread, maxtasksperchild=1) as pool:
            pool.starmap(_train, todo, chunksize=1)


def run_cells(
    run: Callable[[C], tuple[C, dict]],
    cells: Sequence[C],
    results: str | Path,
    jobs: int,
    line: Callable[[dict], str],
    workers: Pool | None = None,
) -> list[dict]:
    """Run what is not yet in the results; write each as it ends, and print a line of it.

    Each has a process of its own, unless other workers are given.

    Returns:
        The record of each cell, in their order.
    """
    done = read(Path(results), type(cells[0]))
    todo = [cell for cell in cells if cell not in done]
    with workers or get_context("spawn").Pool(jobs, one_thread, maxtasksperchild=1) as pool:
        for cell, result in pool.imap_unordered(run, todo, chunksize=1):
            done[cell] = {**asdict(cell), **result}
            write_text(results, "".join(f"{json.dumps(record)}\n" for record in done.values()))
            print(line(done[cell]), flush=True)
    return [done[cell] for cell in cells]


def read(path: Path, kind: type[C]) -> dict[C, dict]:
    """The cells that are done."""
    records = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    names = [field.name for field in fields(kind)]
    return {kind(*(record[name] for name in names)): record for record in records}


def one_thread() -> None:
    """So that experiments side by side do not wait for one another."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def called(target: str, quick: bool, seeds: int) -> str:
    """The command that makes a page."""
    return f"make {target}" + (" QUICK=1" if quick else f" SEEDS={seeds}" if seeds != SEEDS else "")


def spread_over(seeds: int) -> str:
    """What the figures of a page are."""
    if seeds == 1:
        return "those of one base network, of seed 0: they have no spread"
    return f"means and standard deviations over {seeds} base networks, one a seed"


def machine() -> str:
    """This machine, for the foot of a page."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found[1] if found else "unknown processor"
    return (
        f"{name}, {os.cpu_count()} processors, one thread an experiment; torch {torch.__version__}"
    )


def _train(task: str, seed: int, validation: bool) -> None:
    TASKS[task].train(seed, validation)
