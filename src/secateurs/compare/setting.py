"""What is compared on what, as the first line of a comparison, and whether two are the same."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from ..cost import Cost
from ..errors import FileError, NotFiniteError
from ..files.store import digest, unique_state
from ..groups import Graph
from ..process.describe import origin
from .bench import Bench, count
from .engine import one_thread
from .record import Group, Setting

MEASURED = ("loss", "metric")


def describe(
    bench: Bench, graph: Graph, names: list[str], metric: str, mode: Literal["max", "min"]
) -> Setting:
    """The setting of a comparison; the uncut network is judged.

    Raises:
        DataError: the data or the loss cannot be used.
        NotFiniteError: the loss or the metric is not finite.
    """
    own, cost = bench.options, Cost(graph)
    with one_thread():
        loss, value = bench.mean_loss(bench.model), bench.judge(bench.model)
    for what, number in (("loss", loss), (metric, value)):
        if not math.isfinite(number):
            raise NotFiniteError(f"the {what} of the uncut network is {number}: nothing to compare")
    saved = cost.saved_per_unit()
    made = origin(bench.device, "")
    return Setting(
        network=type(bench.model).__name__,
        size=cost.all(),
        groups=[
            Group(name=g.name, kind=g.kind, size=g.size, macs_per_unit=saved[g.name])
            for g in graph.groups
        ],
        loss=loss,
        metric_name=metric,
        mode=mode,
        metric=value,
        criteria=names,
        measure=own.measure,
        budgets=list(own.budgets),
        seeds=list(own.seeds),
        updates=own.updates,
        examples=sum(map(count, bench.pools[own.seeds[0]])),
        normalize=own.normalize,
        flops_weight=own.flops_weight,
        cost_power=own.cost_power,
        machine={
            **made.versions,
            "platform": made.platform,
            "processor": _processor(),
            "device": made.device,
            "threads": "1 a worker",
        },
        weights=digest(unique_state(bench.model), {}),
        data=_data_digest(bench),
        options=own.model_dump(mode="json"),
    )


def _processor() -> str:
    """The name of the processor, as Linux or Python knows it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(named, platform.processor() or platform.machine())


def _data_digest(bench: Bench) -> str:
    """Of what scores are taken over, for every seed."""
    tensors = {
        f"{seed}/{i}/{j}": leaf
        for seed, batches in bench.pools.items()
        for i, batch in enumerate(batches)
        for j, leaf in enumerate(_tensors(batch))
    }
    return digest(tensors, {})


def _tensors(batch: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor))


def check_same(saved: Setting, now: Setting, path: Path) -> None:
    """Refuse to go on with a comparison of something else; another machine may.

    Raises:
        FileError: names what differs.
    """
    before, after = (s.model_dump(exclude={"machine", *MEASURED}) for s in (saved, now))
    options = before.pop("options"), after.pop("options")
    different = [key for one, other in ((before, after), options) for key in one | other
                 if one.get(key) != other.get(key)]  # fmt: skip
    for name in MEASURED:
        old, new = getattr(saved, name), getattr(now, name)
        if not different and not math.isclose(old, new, rel_tol=1e-3, abs_tol=1e-6):
            different.append(name)
    if different:
        raise FileError(
            f"{path} is of another comparison: {', '.join(different)} differ; resume with the "
            "same, or use another folder"
        )
