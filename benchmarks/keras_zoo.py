"""Networks of `keras.applications`, cut and then loaded on every backend of Keras.

Each part of each network runs in a process of its own, and its record is kept: a run that was
stopped goes on where it was. Writes docs/results/keras-zoo.md.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import typer
from cells import machine

from secateurs.atomic import parse_json, read_text, write_text

HERE = Path(__file__).parent
BACKENDS = ("torch", "tensorflow", "jax")
# The side of the images in pixels: 64 where the network allows it
SIZES = {
    "ResNet50": 64, "MobileNetV2": 64, "MobileNetV3Small": 64, "EfficientNetB0": 64,
    "DenseNet121": 64, "ConvNeXtTiny": 64, "VGG16": 64, "Xception": 75, "InceptionV3": 75,
    "NASNetMobile": 64,
}  # fmt: skip
HOME = {"NASNetMobile": "tensorflow"}  # where it is cut, if not on torch
LIMITS = {"float64": 1e-10, "float32": 1e-5}
AGREE = 1e-4  # of the largest output, between backends, in float32
TIMED, TIMED_SIZE, RUNS = "ResNet50", 224, 3
SECONDS = {"torch": 10, "tensorflow": 25}  # at most, for trace and rebuild; none is set for JAX
QUICK = {  # compile fast: the programs run once
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def cut(name: str, results: Path) -> dict:
    """A network cut at home, and loaded on every backend."""
    home = HOME.get(name, "torch")
    record = {"name": name, "cut": one("cut", name, SIZES[name], results / name, home)}
    if "failed" not in record["cut"]:
        record |= {b: one("load", name, SIZES[name], results / name, b) for b in BACKENDS}
    return record


def timed(backend: str, results: Path) -> dict:
    """Trace and rebuild of one network on a backend, in fresh processes."""
    folders = [results / f"{TIMED}-{run}" for run in range(RUNS)]
    every = [one("time", TIMED, TIMED_SIZE, folder, backend) for folder in folders]
    return {"backend": backend, "runs": every}


def one(part: str, name: str, size: int, folder: Path, backend: str) -> dict:
    """The record of one process, kept in the folder; {'failed': its last line} of an error."""
    kept = folder / f"{part}-{backend}.json"
    if kept.exists():
        return parse_json(read_text(kept), str(kept))
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(HERE / "keras_one.py"), part, name, str(size), str(folder)],
        env={**os.environ, **QUICK, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended with {done.returncode}"}
    record = json.loads(done.stdout.strip().splitlines()[-1])
    print(name, part, backend, record, flush=True)
    write_text(kept, json.dumps(record))
    return record


def faults(record: dict) -> Iterator[str]:
    """What is not as it should be in a network that was cut and loaded."""
    name, cut = record["name"], record["cut"]
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


def late(record: dict) -> Iterator[str]:
    """What took too long."""
    seconds = spread(record, "trace", "rebuild")[1]
    if not seconds <= SECONDS.get(record["backend"], math.inf):
        yield f"{TIMED} on {record['backend']}: {seconds:.1f} s"


def spread(record: dict, *parts: str) -> list[float]:
    """Seconds of these parts: the least, the median, the most; NaN if they failed."""
    seconds = sorted(sum(run.get(part, math.nan) for part in parts) for run in record["runs"])
    return [seconds[0], seconds[len(seconds) // 2], seconds[-1]]


def row(record: dict) -> str:
    """A line of the table of networks."""
    if "failed" in record["cut"]:
        return _line(record["name"], *["failed"] * 8)
    cut = record["cut"]
    return _line(
        record["name"],
        f"{SIZES[record['name']]}²",
        f"{cut['exact']} of {cut['groups']}",
        f"{cut['before'] / 1e6:.2f} → {cut['after'] / 1e6:.2f} M",
        *(f"{cut[dtype]:.1e}" for dtype in LIMITS),
        "yes" if cut["same"] else "no",
        *(f"{record[b]['error']:.1e}" if "error" in record[b] else "failed" for b in BACKENDS),
    )


def time_row(record: dict) -> str:
    """A line of the table of seconds."""
    cells = []
    for parts in (("trace", "rebuild"), ("work",)):
        least, median, most = spread(record, *parts)
        cells.append(f"{median:.1f} ({least:.1f} to {most:.1f})")
    return _line(record["backend"], *cells, str(SECONDS.get(record["backend"], "not set")))


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def page(networks: list[dict], times: list[dict]) -> str:
    """The page of these records."""
    found = [fault for record in networks for fault in faults(record)]
    found += [fault for record in times for fault in late(record)]
    told = "\n".join(f"- {fault}" for fault in found)
    versions = ", ".join(f"{p} {version(p)}" for p in ("keras", "tensorflow-cpu", "jax"))
    return f"""# Networks of keras.applications

`make keras-zoo`. Random weights of seed 0, in which no bias, scale or statistic is 0 or 1. A random
30% of every exact group is gone. The law: the largest difference from the gated network, over its
largest output, in float64 (at most {LIMITS["float64"]:.0e}) and float32 (at most
{LIMITS["float32"]:.0e}); in float64 on the recorded programs of both, since on torch Keras takes
means and normalises in float32 whatever `floatx` is. "Same" says that a rebuild which cuts nothing
gives the same bits. The three last columns are the `.keras` file, loaded without the library on
each backend: the largest difference from the outputs of the network that was saved, in float32 (at
most {AGREE:.0e}), after which one step of `fit` on two images gave a finite loss.

NASNetMobile is cut on TensorFlow and traced, as any model there, from its file on torch. The others
are cut on torch, where Keras refuses to construct this one ("not available with the
torch backend at this time due to an outstanding bug"). Its layers run there all the same.

| network | size | exact groups | parameters | float64 | float32 | same | torch | TensorFlow | JAX |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(map(row, networks))}

## Time

Seconds for trace and rebuild of {TIMED} at {TIMED_SIZE}², median of {RUNS} (and the span), each in
a fresh process: on the clock, and of processors, which other work on the machine does not lengthen.
On TensorFlow and JAX both include the start of the second process, which happens once. XLA,
which JAX compiles with, leaves out its optimisations here and above, to save time.

| backend | on the clock | of processors | at most |
|---|---|---|---|
{chr(10).join(map(time_row, times))}

{told or "Nothing missed its limit."}

{machine()}; {versions}.
"""


def main(only: str = "*", results: Path = Path("runs/keras-zoo"), out: Path | None = None) -> None:
    """Run what has no record yet; --out writes the page if nothing is left out."""
    networks = [cut(name, results) for name in SIZES if fnmatchcase(name, only)]
    times = [
        timed(backend, results) for backend in BACKENDS if fnmatchcase(f"time {backend}", only)
    ]
    found = [fault for record in networks for fault in faults(record)]
    found += [fault for record in times for fault in late(record)]
    print(*found, sep="\n")
    if out is not None and len(networks) == len(SIZES):
        write_text(out, page(networks, times))
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
