"""One network of the coverage table, from its trace to its exports, in a process of its own.

Writes one JSON object, anew after each stage, so that a process that is ended for its time leaves
what it knew, and where it was.
"""

from __future__ import annotations

import copy
import json
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from coverage_models import Sample, sample
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.atomic import write_text
from secateurs.errors import ExportError, SecateursError
from secateurs.trace.record import as_call

FRACTION = 0.3
HERE = Path(__file__).parents[1]


class Record(dict[str, Any]):
    """What is known of one network; on disk after every stage."""

    def __init__(self, name: str, path: Path):
        super().__init__(name=name)
        self.path = path

    def write(self) -> None:
        write_text(self.path, json.dumps(self))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run a stage; what it raises is noted, with where, and ends the later ones."""
        self["stage"] = name
        self.write()
        try:
            yield
        except Exception as error:  # noqa: BLE001 — whatever a network raises is a result
            self["failed"] = name
            self["error"] = f"{type(error).__name__}: {error}"
            self["refused"] = isinstance(error, SecateursError)
            self["where"] = _frames(error)
            raise Stop from error
        finally:
            self.write()


class Stop(Exception):
    """A stage failed; it is in the record."""


def _frames(error: BaseException) -> list[str]:
    """The last lines of code that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in frames]


# ---------------------------------------------------------------------- time and memory
def resident(key: str = "VmRSS") -> float:
    """MiB that this process has in memory; with 'VmHWM', the most that it had since `reset`."""
    try:
        text = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = re.search(rf"{key}:\s+(\d+)", text)
    return int(found[1]) / 2**10 if found else float("nan")


def reset() -> None:
    """Begin anew to note the most memory in use."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


# ---------------------------------------------------------------------- the stages
def doubled(thing: Any) -> Any:
    """A copy in float64 of a model, or of a nest of tensors."""
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).double()
    return pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), thing
    )


def runs(model: nn.Module, inputs: Any) -> bool:
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception:  # noqa: BLE001
        return False
    return True


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def prunable(graph: sc.Graph) -> int:
    """Elements of parameters that lie on at least one index of an axis that some unit owns."""
    total = 0
    program = graph.program
    masks: dict[str, Tensor] = {}
    for name, dim, axis in graph.slots:
        if name in program.parameters:
            shape = program.parameters[name]
            free = torch.zeros(shape[dim], dtype=torch.bool)
            blocks = graph.axis_incidence(axis)[0] % shape[dim]
            free[torch.from_numpy(blocks)] = True
            mask = masks.setdefault(name, torch.zeros(shape, dtype=torch.bool))
            mask |= free.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    for mask in masks.values():
        total += int(mask.sum())
    return total


def cut(record: Record, made: Sample) -> tuple[sc.Graph, sc.Plan, nn.Module]:
    """Trace, group, plan and apply, timed; in float32, as people have their networks."""
    model, inputs = made.model, made.inputs
    record["parameters"] = count(model)
    reset()
    before, started = resident(), time.perf_counter()
    with record.stage("trace"):
        graph = sc.trace(model, inputs)
        record["seconds_trace"] = time.perf_counter() - started
    with record.stage("plan"):
        plan = graph.random_plan(FRACTION, seed=1)
    with record.stage("apply"):
        small = sc.apply(model, plan)
    record["seconds"] = time.perf_counter() - started
    record["peak_mib"] = resident("VmHWM") - before
    return graph, plan, small


def describe(record: Record, graph: sc.Graph) -> None:
    record["groups"] = len(graph)
    record["kinds"] = dict(Counter(f"{g.kind}{'' if g.exact else '*'}" for g in graph))
    record["prunable"] = prunable(graph) / max(1, record["parameters"])
    frozen = Counter({f.reason: 0 for f in graph.frozen if f.tensor in graph.program.parameters})
    for axis in graph.frozen:
        if axis.reason in frozen:
            frozen[axis.reason] += 1
    record["frozen"] = dict(frozen.most_common(12))


def law(record: Record, made: Sample, plan: sc.Plan) -> None:
    """The cut of a float64 copy against the copy gated at its reads."""
    model, inputs, dtype = doubled(made.model), doubled(made.inputs), "float64"
    if not runs(model, inputs):
        model, inputs, dtype = made.model, made.inputs, "float32"
    record["dtype"] = dtype
    with record.stage("law"):
        proof = sc.verify(model, sc.apply(model, plan), plan, inputs)
        record["law"] = proof.max_relative_error
        if not proof.holds:
            raise sc.errors.LawError(str(proof))


def train(model: nn.Module, made: Sample) -> float:
    """One step of descent in training mode; the loss after it."""
    model.train()
    args, kwargs = as_call(made.inputs)
    if made.targets is not None:
        args = (*args, made.targets)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    losses = []
    for _ in range(2):
        found = [
            t
            for t in pytree.tree_leaves(model(*args, **kwargs))
            if isinstance(t, Tensor) and t.requires_grad and t.numel()
        ]
        loss = torch.stack([t.float().square().mean() for t in found]).mean()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in grads):
            raise FloatingPointError("a gradient is not finite")
        optimizer.step()
    return losses[-1]


def word(task: Callable[[], Any]) -> str:
    """'yes', or what it raised."""
    try:
        task()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "yes"


def both(task: Callable[[nn.Module], Any], small: nn.Module, model: nn.Module) -> str:
    """'yes', or why not; said of the original where it cannot do it either."""
    said = word(lambda: task(small))
    if said != "yes" and word(lambda: task(model)) != "yes":
        return f"nor does the original: {said}"
    return said


def exports(record: Record, small: nn.Module, made: Sample) -> None:
    folder = Path(tempfile.mkdtemp())
    small.eval(), made.model.eval()
    for key, write in (("pt2", sc.export_pt2), ("onnx", sc.export_onnx)):
        with record.stage(key):
            options = {} if isinstance(made.inputs, (Tensor, dict)) else {}
            record[key] = both(
                lambda m, write=write, key=key, options=options: write(
                    m, made.inputs, folder / f"a.{key}", **options
                ),
                small,
                made.model,
            )


def alone(record: Record, graph: sc.Graph, made: Sample) -> None:
    """After a failure: which groups can be cut by themselves, and what the others raise."""
    bad: dict[str, str] = {}
    model, inputs = doubled(made.model), doubled(made.inputs)
    for group in graph:
        blocks = group.blocks()
        few = max(1, min(map(len, blocks)) // 4)
        try:
            plan = graph.plan({group.name: [int(i) for b in blocks for i in b[:few]]})
            proof = sc.verify(model, sc.apply(model, plan), plan, inputs)
            if not proof.holds:
                bad[f"{group.name} ({group.kind})"] = f"law {proof.max_relative_error:.1e}"
        except Exception as error:  # noqa: BLE001
            bad[f"{group.name} ({group.kind})"] = f"{type(error).__name__}: {error}"
        record["groups_failing"] = bad
        record.write()


def main(name: str, out: Path, export: bool = True, dig: bool = False) -> None:
    """Measure one network."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record = Record(name, out)
    graph = None
    try:
        with record.stage("build"):
            made = sample(name)
            if not runs(made.model, made.inputs):
                args, kwargs = as_call(made.inputs)
                made.model(*args, **kwargs)
        graph, plan, small = cut(record, made)
        describe(record, graph)
        record["units_gone"] = len(plan)
        record["left"] = count(small) / max(1, record["parameters"])
        record["mended"] = len(plan.attributes) + len(plan.literals)
        law(record, made, plan)
        with record.stage("train"):
            twins = copy.deepcopy(small), copy.deepcopy(made.model)
            record["trains"] = both(lambda m: train(m, made), *twins)
        if export:
            exports(record, small, made)
        record["stage"] = "done"
    except Stop:
        if graph is None and record["failed"] != "build" and record["failed"] != "trace":
            graph = sc.trace(made.model, made.inputs)
            describe(record, graph)
        if dig and graph is not None and record["failed"] in ("plan", "apply", "law"):
            alone(record, graph, made)
    record.write()


if __name__ == "__main__":
    typer.run(main)
