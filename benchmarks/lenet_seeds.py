"""The demo's figures over seeds: test error and latency of LeNet-5 at 20% and 10% of its MACs."""

from __future__ import annotations

import platform
import statistics
import time

import torch
import typer

from demo import prune_lenet
from lenet import pretrained
from secateurs.latency import latency
from secateurs.tables import render


def main(seeds: int = 3, validation: bool = False) -> None:
    """Prune from each seed's own trained weights; print a row a run, and the means."""
    torch.set_flush_denormal(True)
    rows = []
    for macs in (0.2, 0.1):
        changes = []
        for seed in range(seeds):
            started = time.perf_counter()
            model = pretrained(seed)
            result = prune_lenet(model, macs, seed, validation=validation, progress=False)
            seconds = time.perf_counter() - started
            before, after = (result.history[i]["metric"] for i in (0, -1))
            changes.append(after - before)
            row = [f"{macs:.0%}", str(seed), f"{result.after['macs']:,}"]
            row += [f"{result.after['params']:,}", f"{before:.2f}", f"{after:.2f}"]
            row.append(f"{after - before:+.2f}")
            for batch in (1, 64):
                a, b = latency([model, result.model], torch.randn(batch, 1, 28, 28))
                row.append(f"{a.median / b.median:.1f}×")
            rows.append([*row, f"{seconds:.0f}"])
            print(*rows[-1], flush=True)
        mean, spread = statistics.mean(changes), statistics.stdev(changes) if seeds > 1 else 0.0
        rows.append(
            [f"{macs:.0%}", "mean", "", "", "", "", f"{mean:+.3f} ± {spread:.3f}"] + [""] * 3
        )
    columns = ("MACs", "seed", "MACs left", "parameters", "error before (%)", "after (%)")
    columns += ("change", "faster, batch 1", "batch 64", "seconds")
    title = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(render(title, columns, rows))


if __name__ == "__main__":
    typer.run(main)
