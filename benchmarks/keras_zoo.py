"""Networks of `keras.applications`, cut on torch and loaded on every backend of Keras.

Each part of each network runs in a process of its own. Writes docs/results/keras-zoo.md.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import typer
from cells import machine

from secateurs.atomic import write_text

HERE = Path(__file__).parent
BACKENDS = ("torch", "tensorflow", "jax")
NETWORKS = {
    "ResNet50": 75,
    "MobileNetV2": 75,
    "MobileNetV3Small": 75,
    "EfficientNetB0": 75,
    "DenseNet121": 75,
    "ConvNeXtTiny": 75,
    "VGG16": 75,
    "Xception": 75,
    "InceptionV3": 75,
    "NASNetMobile": 75,
}
LIMITS = {"float64": 1e-10, "float32": 1e-5}
AGREE = 1e-4  # of the largest output, between backends, in float32
TIMED = {"torch": 10, "tensorflow": 25, "jax": 25}  # seconds for trace and rebuild of a ResNet50
RUNS = 3


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


def row(name: str, size: int) -> tuple[str, list[str]]:
    """A row of the table, and what of it is not as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        cut = one("cut", name, size, Path(folder))
        if "failed" in cut:
            return f"| {name} | {size}² | failed |" + " |" * 7, [f"{name}: {cut['failed']}"]
        loaded = {b: one("load", name, size, Path(folder), b) for b in BACKENDS}
    faults = [
        f"{name}: the law in {dtype} is off by {cut[dtype]:.1e}"
        for dtype, limit in LIMITS.items()
        if not cut[dtype] <= limit
    ]
    if not cut["same"]:
        faults.append(f"{name}: a rebuild without a cut changes bits")
    for backend, record in loaded.items():
        if "failed" in record:
            faults.append(f"{name} on {backend}: {record['failed']}")
        elif not (record["error"] <= AGREE and math.isfinite(record["loss"])):
            faults.append(f"{name} on {backend}: {record}")
    cells = [
        name,
        f"{size}²",
        f"{cut['exact']} of {cut['groups']}",
        f"{cut['before'] / 1e6:.2f} → {cut['after'] / 1e6:.2f} M",
        *(f"{cut[dtype]:.1e}" for dtype in LIMITS),
        "yes" if cut["same"] else "no",
        *(f"{loaded[b]['error']:.1e}" if "error" in loaded[b] else "failed" for b in BACKENDS),
    ]
    return "| " + " | ".join(cells) + " |", faults


def times(size: int = 224) -> tuple[list[str], list[str]]:
    """Seconds for trace and rebuild of a ResNet50, with whatever process that needs."""
    rows, faults = [], []
    for backend, limit in TIMED.items():
        runs = [one("time", "ResNet50", size, Path(), backend) for _ in range(RUNS)]
        if failed := [run["failed"] for run in runs if "failed" in run]:
            faults.append(f"timing on {backend}: {failed[0]}")
            continue
        totals = sorted(run["trace"] + run["rebuild"] for run in runs)
        span = f"{totals[len(totals) // 2]:.1f} ({totals[0]:.1f} to {totals[-1]:.1f})"
        rows.append(f"| {backend} | {span} | {limit} |")
        if totals[len(totals) // 2] > limit:
            faults.append(f"timing on {backend}: {span} s, and {limit} s are the limit")
    return rows, faults


def page(rows: list[str], timed: list[str], faults: list[str]) -> str:
    versions = ", ".join(f"{p} {version(p)}" for p in ("keras", "tensorflow-cpu", "jax"))
    return f"""# Networks of keras.applications

`make keras-zoo`. Random weights of seed 0, in which no bias and no statistic is 0 or 1. A random
30% of every exact group is gone. The law: the largest difference from the gated network, over its
largest output, in float64 (at most {LIMITS["float64"]:.0e}) and float32 (at most
{LIMITS["float32"]:.0e}). "Same" says that a rebuild which cuts nothing gives the same bits. The
three last columns are the `.keras` file, loaded without the library on each backend: the largest
difference from the outputs of the network that was saved, in float32 (at most {AGREE:.0e}), after
which one step of `fit` gave a finite loss.

| network | image | exact groups | parameters | float64 | float32 | same | torch | TF | JAX |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

## Time

Seconds for trace and rebuild of ResNet50 at 224², median of {RUNS} (and the span), each in a fresh
process. On TensorFlow and JAX this includes the start of the second process, which happens once.

| backend | seconds | at most |
|---|---|---|
{chr(10).join(timed)}

{chr(10).join(f"- {fault}" for fault in faults) or "Nothing missed its limit."}

{machine()}; {versions}.
"""


def main(only: str = "", out: str = "") -> None:
    """Print the table; --out writes the page, --only takes one network."""
    rows, faults = [], []
    for name, size in NETWORKS.items():
        if only in ("", name):
            line, found = row(name, size)
            print(line, *found, sep="\n", flush=True)
            rows.append(line)
            faults += found
    if not only:
        timed, found = times()
        faults += found
        print(*timed, *found, sep="\n")
        if out:
            write_text(Path(out), page(rows, timed, faults))
    raise typer.Exit(1 if faults else 0)


if __name__ == "__main__":
    typer.run(main)
