"""Every network of the coverage table, each in a process of its own, beside Torch-Pruning.

A network has three cells: what this library makes of it, what Torch-Pruning does, and whether what
is left of it exports. The records are in a file, a line each; a run that was stopped goes on where
it was. Writes docs/coverage.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.pool import ThreadPool
from pathlib import Path

import typer
from cells import read, run_cells
from coverage_models import names
from coverage_page import page

from secateurs.atomic import write_text

HERE = Path(__file__).parent
PARTS = {
    "ours": ("coverage_one.py",),
    "theirs": ("coverage_peer.py",),
    "exports": ("coverage_one.py", "--export"),
}
PATIENCE = 1800  # seconds after which a process that does not come back is ended


@dataclass(frozen=True)
class Cell:
    """One process: a network, and which of its parts."""

    name: str
    part: str


def run(cell: Cell) -> tuple[Cell, dict]:
    """The record of one process; what it knew last if it had to be ended."""
    script, *options = PARTS[cell.part]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "record.json")
        command = [sys.executable, str(HERE / script), cell.name, str(out), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, env=environment, timeout=PATIENCE, capture_output=True, text=True
            )
            ended = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            ended = f"no end after {PATIENCE} s"
        record = json.loads(out.read_text()) if out.exists() else {"stage": "start"}
    if record["stage"] != "done" and "failed" not in record:
        record |= {"failed": record["stage"], "error": ended}
    return cell, record


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
