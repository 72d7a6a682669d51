"""Networks of `keras.applications`, cut on torch and loaded on every backend of Keras.

Each part of each network runs in a process of its own. The records are in a file, a line each; a
run that was stopped goes on where it was. Writes docs/results/keras-zoo.md.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import typer
from cells import machine, run_cells

from secateurs.atomic import write_text

HERE = Path(__file__).parent
BACKENDS = ("torch", "tensorflow", "jax")
NETWORKS = (
    "ResNet50", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "DenseNet121", "ConvNeXtTiny",
    "VGG16", "Xception", "InceptionV3", "NASNetMobile",
)  # fmt: skip
SIZE, TIMED_SIZE = 75, 224  # pixels
LIMITS = {"float64": 1e-10, "float32": 1e-5}
AGREE = 1e-4  # of the largest output, between backends, in float32
SECONDS = {"torch": 10, "tensorflow": 25, "jax": 25}  # for trace and rebuild of a ResNet50
RUNS = 3


@dataclass(frozen=True)
class Cell:
    """A network, cut and loaded; or timed on a backend, so many times."""

    name: str
    timed: str = ""


def run(cell: Cell) -> tuple[Cell, dict]:
    """Every part of one line of the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if cell.timed:
            every = [one("time", cell.name, TIMED_SIZE, folder, cell.timed) for _ in range(RUNS)]
            return cell, {"runs": every}
        record = {"cut": one("cut", cell.name, SIZE, folder)}
        if "failed" not in record["cut"]:
            record |= {b: one("load", cell.name, SIZE, folder, b) for b in BACKENDS}
    return cell, record


def one(part: str, name: str, size: int, folder: Path, backend: str = "torch") -> dict:
    """The record of one process; {'failed': its last line} if it ended with an error."""
    script = str(HERE / "keras_one.py")
    done = subprocess.run(
        [sys.executable, script, part, name, str(size), str(folder)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended with {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def faults(record: dict) -> Iterator[str]:
    """What is not as it should be."""
    name = record["name"]
    if record["timed"]:
        seconds = total(record)[1]
        if not seconds <= SECONDS[record["timed"]]:
            yield f"{name} on {record['timed']}: {seconds:.1f} s"
        return
    cut = record["cut"]
    if "failed" in cut:
        yield f"{name}: {cut['failed']}"
        return
    for dtype, limit in LIMITS.items():
        if not cut[dtype] <= limit:
            yield f"{name}: the law in {dtype} is off by {cut[dtype]:.1e}"
    if not cut["same"]:
        yield f"{name}: a rebuild without a cut changes bits"
    for backend in BACKENDS:
        loaded = record[backend]
        if "failed" in loaded:
            yield f"{name} on {backend}: {loaded['failed']}"
        elif not (loaded["error"] <= AGREE and math.isfinite(loaded["loss"])):
            yield f"{name} on {backend}: {loaded}"


def total(record: dict) -> list[float]:
    """Seconds for trace and rebuild: the least, the median, the most; NaN if it failed."""
    seconds = sorted(r.get("trace", math.nan) + r.get("rebuild", math.nan) for r in record["runs"])
    return [seconds[0], seconds[len(seconds) // 2], seconds[-1]]


def row(record: dict) -> str:
    """A line of a table."""
    if record["timed"]:
        least, median, most = total(record)
        cells = [record["timed"], f"{median:.1f} ({least:.1f} to {most:.1f})"]
        cells.append(str(SECONDS[record["timed"]]))
    elif "failed" in record["cut"]:
        cells = [record["name"], *["failed"] * 8]
    else:
        cut = record["cut"]
        cells = [
            record["name"],
            f"{cut['exact']} of {cut['groups']}",
            f"{cut['before'] / 1e6:.2f} → {cut['after'] / 1e6:.2f} M",
            *(f"{cut[dtype]:.1e}" for dtype in LIMITS),
            "yes" if cut["same"] else "no",
            *(f"{record[b]['error']:.1e}" if "error" in record[b] else "failed" for b in BACKENDS),
        ]
    return "| " + " | ".join(cells) + " |"


def page(records: list[dict]) -> str:
    """The page of these records."""
    tables = ["\n".join(row(r) for r in records if bool(r["timed"]) == timed) for timed in (0, 1)]
    found = "\n".join(f"- {fault}" for record in records for fault in faults(record))
    versions = ", ".join(f"{p} {version(p)}" for p in ("keras", "tensorflow-cpu", "jax"))
    return f"""# Networks of keras.applications

`make keras-zoo`. Random weights of seed 0, in which no bias and no statistic is 0 or 1; images of
{SIZE}². A random 30% of every exact group is gone. The law: the largest difference from the gated
network, over its largest output, in float64 (at most {LIMITS["float64"]:.0e}) and float32 (at most
{LIMITS["float32"]:.0e}); in float64 on the recorded programs of both, since on torch Keras takes
means and normalises in float32 whatever `floatx` is. "Same" says that a rebuild which cuts nothing
gives the same bits. The three last columns are the `.keras` file, loaded without the library on
each backend: the largest difference from the outputs of the network that was saved, in float32 (at
most {AGREE:.0e}), after which one step of `fit` gave a finite loss.

| network | exact groups | parameters | float64 | float32 | same | torch | TensorFlow | JAX |
|---|---|---|---|---|---|---|---|---|
{tables[0]}

## Time

Seconds for trace and rebuild of ResNet50 at {TIMED_SIZE}², median of {RUNS} (and the span), each in
a fresh process. On TensorFlow and JAX this includes the start of the second process, which happens
once.

| backend | seconds | at most |
|---|---|---|
{tables[1]}

{found or "Nothing missed its limit."}

{machine()}; {versions}.
"""


def main(only: str = "*", results: str = "runs/keras-zoo.jsonl", out: str = "") -> None:
    """Run what is not yet in the results; --out writes the page if they are complete."""
    every = [*map(Cell, NETWORKS), *(Cell("ResNet50", backend) for backend in BACKENDS)]
    wanted = [cell for cell in every if fnmatchcase(f"{cell.name} {cell.timed}".strip(), only)]
    records = run_cells(run, wanted, results, 1, row)
    found = [fault for record in records for fault in faults(record)]
    print(*found, sep="\n")
    if out and wanted == every:
        write_text(Path(out), page(records))
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
