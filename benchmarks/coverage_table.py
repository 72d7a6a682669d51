"""Every network of the coverage table, each in a process of its own, beside Torch-Pruning.

A network has three cells: what this library makes of it, what Torch-Pruning does, and whether what
is left of it exports. The records are in a file, a line each; a run that was stopped goes on where
it was. Writes docs/coverage.md.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path

import typer
from cells import read, run_cells
from coverage_models import names
from coverage_page import page

from secateurs.atomic import write_text

PARTS: dict[str, tuple[str, dict[str, bool]]] = {
    "ours": ("coverage_one", {}),
    "theirs": ("coverage_peer", {}),
    "exports": ("coverage_one", {"export": True}),
}
PATIENCE = 900  # seconds after which a process that does not come back is ended
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["coverage_start"])


@dataclass(frozen=True)
class Cell:
    """One process: a network, and which of its parts."""

    name: str
    part: str


def run(cell: Cell) -> tuple[Cell, dict]:
    """The record of one process; what it knew last if it had to be ended."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "record.json"), Path(folder, "log")
        process = PROCESSES.Process(target=_measure, args=(cell.name, PARTS[cell.part], out, log))
        process.start()
        process.join(PATIENCE)
        ended = f"no end after {PATIENCE} s"
        if process.exitcode is not None:
            said = log.read_text(errors="replace") if log.exists() else ""
            ended = f"the process ended with {process.exitcode}: {said[-300:]}"
        process.kill()
        process.join()
        record = json.loads(out.read_text()) if out.exists() else {"stage": "start"}
    if record["stage"] != "done" and "failed" not in record:
        record |= {"failed": record["stage"], "error": ended}
    return cell, record


def _measure(name: str, part: tuple[str, dict[str, bool]], out: Path, log: Path) -> None:
    """In a process of its own, what it prints going to the log."""
    printed = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    module, options = part
    importlib.import_module(module).main(name, out, **options)


def line(record: dict) -> str:
    """One line of progress."""
    if "failed" in record:
        said = f"{record['failed']}: {record['error'][:100]}"
    elif record["part"] == "ours":
        said = f"{record['groups']} groups, law {record['law']:.0e}, {record['seconds']:.1f} s"
    elif record["part"] == "theirs":
        said = f"{record['left']:.0%} left, {record['seconds']:.1f} s"
    else:
        said = f"torch.export {record['pt2'][:50]}, ONNX {record['onnx'][:50]}"
    return f"{record['part']:<8} {record['name']:<44} {said}"


def main(
    results: Path = Path("runs/zoo.jsonl"),
    out: str = "",
    jobs: int = 1,
    only: str = "*",
    parts: str = ",".join(PARTS),
    again: bool = False,
) -> None:
    """Run what is not in the results, and write the page with --out.

    --only names the networks, by patterns with commas between; --again runs them anew.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    patterns = only.split(",")
    chosen = [name for name in names() if any(fnmatchcase(name, p) for p in patterns)]
    cells = [Cell(name, part) for part in parts.split(",") for name in chosen]
    if again:
        kept = [record for cell, record in read(results, Cell).items() if cell not in cells]
        write_text(results, "".join(f"{json.dumps(record)}\n" for record in kept))
    run_cells(run, cells, results, jobs, line, ThreadPool(jobs))
    if out:
        write_text(out, page(names(), [*read(results, Cell).values()]))


if __name__ == "__main__":
    typer.run(main)
