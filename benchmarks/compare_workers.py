"""The oracle and a score of LeNet-5 on MNIST with one Ray worker and with two, one of them killed.

The numbers must be those of this process, bit for bit; two workers must take at most 0.6 of the
time of one. What it takes to start Ray and to bring model and data to the workers is not counted.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import torch
import typer
from lenet import pretrained
from mnist import load
from torch import nn

from secateurs.batches import Loss
from secateurs.compare.bench import Bench
from secateurs.compare.engine import open_engine
from secateurs.compare.experiments import Part, Task, merged, perform
from secateurs.compare.log import Trial
from secateurs.compare.options import CompareOptions
from secateurs.compare.record import Values
from secateurs.criteria import find_criterion
from secateurs.tables import render

EXAMPLE = torch.zeros(1, 1, 28, 28)
TRIALS = (Trial("oracle"), Trial("scores", "taylor"))
LIMIT = 0.6


class Fragile:
    """A loss that kills its process the first time a worker asks for it after `arm`."""

    def __init__(self, fuse: Path):
        self.fuse, self.loss = fuse, nn.CrossEntropyLoss(reduction="none")

    def arm(self) -> None:
        self.fuse.touch()

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.fuse.exists():
            self.fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.loss(output, target)


def bench_of(examples: int, shard: int, loss: Loss) -> Bench:
    images, labels = load("test")
    pairs = list(zip(images[:examples].split(64), labels[:examples].split(64), strict=True))
    options = CompareOptions(shard=shard, seeds=(0,))
    criteria = {"taylor": find_criterion("taylor")}
    return Bench(
        pretrained(), EXAMPLE, {0: pairs}, pairs, pairs, loss, None, None, criteria, None, None,
        None, options,
    )  # fmt: skip


def jobs_of(bench: Bench) -> list[Task]:
    size, batches = bench.options.shard, len(bench.pools[0])
    return [Task(t, shard=(i, i + size)) for t in TRIALS for i in range(0, batches, size)]


def timed(bench: Bench, engine: str | None, workers: int, spoil: Fragile | None = None):
    """Seconds of all jobs on workers that are warm, and what they gave."""
    jobs = jobs_of(bench)
    with open_engine(engine, perform, bench, workers) as run:  # type: ignore[arg-type]
        list(run(jobs[:1] * 2 * workers))  # start, fetch, trace
        if spoil is not None:
            spoil.arm()
        started = time.perf_counter()
        parts = dict(run(jobs))
        seconds = time.perf_counter() - started
    return seconds, [_values(bench, trial, jobs, parts) for trial in TRIALS]


def _values(bench: Bench, trial: Trial, jobs: list[Task], parts: dict[int, Part]) -> Values:
    own = [parts[i] for i, job in enumerate(jobs) if job.trial == trial]
    line = merged(bench, trial, own)
    return line.loss if trial.kind == "oracle" else line.values


def main(examples: int = 10_000, shard: int = 20) -> None:
    """Print one row for each way of working; fail where a number differs or two are too slow."""
    with tempfile.TemporaryDirectory() as folder:
        loss = Fragile(Path(folder) / "fuse")
        bench = bench_of(examples, shard, loss)
        here, expected = timed(bench, None, 1)
        rows, seconds = [("this process", f"{here:.1f}", "", "")], {}
        for workers, spoil in ((1, None), (2, None), (2, loss)):
            taken, found = timed(bench, "ray", workers, spoil)
            seconds.setdefault(workers, taken)
            name = f"{workers} Ray worker{'s' * (workers > 1)}{', one killed' if spoil else ''}"
            same = "the same bits" if found == expected else "DIFFERENT"
            rows.append((name, f"{taken:.1f}", f"{taken / seconds[1]:.2f}", same))
    title = f"oracle and Taylor of LeNet-5 over {examples:,} images, {len(jobs_of(bench))} jobs"
    print(render(title, ("", "seconds", "of one worker", "numbers"), rows))
    ratio = seconds[2] / seconds[1]
    if ratio > LIMIT or any(row[3] == "DIFFERENT" for row in rows):
        raise SystemExit(f"two workers take {ratio:.2f} of the time of one; {LIMIT} is the limit")


if __name__ == "__main__":
    typer.run(main)
