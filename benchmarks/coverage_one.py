"""One network of the coverage table, from its trace to its exports, in a process of its own."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from coverage_models import Sample, sample
from coverage_named import offered
from coverage_stage import Record, StopError, count, doubled, limited, measured, run, said, warm_up
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.errors import LawError, SecateursError
from secateurs.trace.model import as_call

FRACTION = 0.3


def cut(record: Record, made: Sample) -> tuple[sc.Graph, sc.Plan, nn.Module]:
    """Trace, group, plan and apply; in float32, as people have their networks."""
    small = copy.deepcopy(made.model)  # cut in place, as the peer cuts
    with measured(record):
        graph, plan = planned(record, made)
        with record.stage("apply"):
            sc.apply(small, plan, inplace=True)
    record["gone"] = len(plan)
    record["left"] = count(small) / max(1, count(made.model))
    record["replay"] = plan.replay
    mended = plan.attributes, plan.edits, plan.restated, plan.scales
    record["mended"] = sum(map(len, mended))
    return graph, plan, small


def planned(record: Record, made: Sample, *, replay: bool = False) -> tuple[sc.Graph, sc.Plan]:
    """A plan that mends the model; one that replays it where that offers nothing, or is refused."""
    plan = None
    with record.stage("trace"):
        graph = sc.trace(made.model, made.inputs, replay=replay)
    with record.stage("plan"):
        exact = any(group.exact for group in graph)
        try:
            plan = graph.random_plan(FRACTION, seed=1, exact_only=exact)
        except SecateursError as error:
            if replay:
                raise
            record["unmended"] = said(error)
    if not plan and not replay:
        return planned(record, made, replay=True)
    assert plan is not None
    if plan.replay:
        reasons = (group.replayed for group in graph if group.replayed)
        record.setdefault("unmended", next(reasons, ""))
    return graph, plan


def describe(record: Record, graph: sc.Graph) -> None:
    """What is offered, and why the rest is not."""
    own = graph.program.parameters
    record["groups"] = len(graph)
    record["kinds"] = dict(Counter(g.kind + ("" if g.exact else "*") for g in graph))
    record["prunable"] = prunable(graph) / max(1, record["parameters"])
    reasons = Counter(axis.reason for axis in graph.frozen if axis.tensor in own)
    record["frozen"] = dict(reasons.most_common(12))
    record["named"] = offered(record["name"], graph)


def prunable(graph: sc.Graph) -> int:
    """How many elements of parameters go with some unit: those on an axis that a group cuts."""
    shapes, masks = graph.program.parameters, {}
    for name, dim, axis in graph.slots:
        if name in shapes:
            size = shapes[name][dim]
            free = torch.zeros(size, dtype=torch.bool)
            free[torch.from_numpy(graph.axis_incidence(axis)[0] % size)] = True
            mask = masks.setdefault(name, torch.zeros(shapes[name], dtype=torch.bool))
            mask |= free.reshape([-1 if d == dim else 1 for d in range(len(shapes[name]))])
    return sum(int(mask.sum()) for mask in masks.values())


def law(record: Record, made: Sample, graph: sc.Graph, plan: sc.Plan) -> None:
    """The cut of a float64 copy against that copy gated at its reads; then of every group too."""
    model, inputs, record["dtype"] = in_doubles(made)
    with record.stage("law"):
        proof = sc.verify(model, sc.apply(model, plan), plan, inputs)
        record["law"] = proof.max_relative_error
        if not proof.holds:
            raise LawError(str(proof))
    if plan.exact and any(not group.exact for group in graph):
        record["all"] = word(lambda: record.update(law_all=_all_groups(model, inputs, graph)))


def in_doubles(made: Sample) -> tuple[nn.Module, Any, str]:
    """A float64 copy of a network, and its inputs; in float32 where some kernel knows that alone.

    Grouped products of experts are such a kernel; batched ones give the same in float64.
    """
    model, inputs = copy.deepcopy(made.model).double(), doubled(made.inputs)
    if word(lambda: run(model, inputs)) != "yes" and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")
    if word(lambda: run(model, inputs)) != "yes":
        return made.model, made.inputs, "float32"
    return model, inputs, "float64"


def _all_groups(model: nn.Module, inputs: Any, graph: sc.Graph) -> float:
    """The law for a cut of every group: statistics retaken over the units that stay."""
    plan = graph.random_plan(FRACTION, seed=1, exact_only=False)
    proof = sc.verify(model, sc.apply(model, plan), plan, inputs)
    if not proof.holds:
        raise LawError(str(proof))
    return proof.max_relative_error


def train(model: nn.Module, made: Sample) -> None:
    """One step of descent in training mode, and the loss after it."""
    args, kwargs = as_call(made.inputs)
    if made.targets is not None:
        args = (*args, made.targets)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-6)
    for _ in range(2):
        outputs = pytree.tree_leaves(model(*args, **kwargs))
        found = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad and t.numel()]
        loss = torch.stack([t.float().square().mean() for t in found]).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not all(bool(g.isfinite().all()) for g in (loss, *gradients)):
            raise FloatingPointError("the loss or a gradient is not finite")
        optimizer.step()


def word(task: Callable[[], Any]) -> str:
    """'yes', or what it raised."""
    try:
        with limited(180):
            task()
    except Exception as error:  # noqa: BLE001 - whatever a network raises is a result
        return said(error)
    return "yes"


def compared(task: Callable[[nn.Module], Any], small: nn.Module, model: nn.Module) -> str:
    """'yes', or why not; and whether the uncut network can do it."""
    found = word(lambda: task(small))
    if found != "yes" and word(lambda: task(model)) != "yes":
        return f"nor uncut: {found}"
    return found


def exports(record: Record, small: nn.Module, made: Sample) -> None:
    """torch.export and ONNX, each compared with the network by the library itself."""
    folder = Path(tempfile.mkdtemp())
    for key, write in (("pt2", sc.export_pt2), ("onnx", sc.export_onnx)):
        record["stage"] = key
        path = folder / f"net.{key}"
        record[key] = compared(
            lambda model, write=write, path=path: write(model, made.inputs, path, batches=()),
            small.eval(),
            made.model.eval(),
        )
        record.write()


def alone(record: Record, made: Sample) -> None:
    """After a failure: the groups that cannot be cut by themselves, and what each raises."""
    model, inputs = copy.deepcopy(made.model).double(), doubled(made.inputs)
    graph = sc.trace(model, inputs)
    record["alone"] = {}
    for group in graph:
        blocks = group.blocks()
        few = max(1, min(map(len, blocks)) // 4)
        units = {group.name: [int(i) for block in blocks for i in block[:few]]}

        def check(units: dict[str, list[int]] = units) -> None:
            plan = graph.plan(units)
            proof = sc.verify(model, sc.apply(model, plan), plan, inputs, graph=graph)
            if not proof.holds:
                raise LawError(str(proof))

        found = word(check)
        if found != "yes":
            record["alone"][f"{group.name} ({group.kind})"] = found
            record.write()


def measure(record: Record, export: bool) -> Sample:
    """Build a network, cut it, and either check and train what is left, or export it."""
    with record.stage("build", 300):
        made = sample(record["name"])
        run(made.model, made.inputs)
    record["parameters"] = count(made.model)
    graph, plan, small = cut(record, made)
    if export:
        exports(record, small, made)
        return made
    describe(record, graph)
    law(record, made, graph, plan)
    with record.stage("train", 300):
        twins = copy.deepcopy(small), copy.deepcopy(made.model)
        record["trains"] = compared(lambda model: train(model, made), *twins)
    return made


def main(name: str, out: Path, export: bool = False, survey: bool = False) -> None:
    """Measure one network, and write its record to OUT."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record = Record(name, out)
    warm_up(lambda net, x: sc.apply(net, sc.trace(net, x).random_plan(FRACTION)))
    try:
        measure(record, export)
        record["stage"] = "done"
    except StopError:
        if record["failed"] in ("plan", "apply", "law") and not export:
            made = sample(name)
            if "groups" not in record:
                describe(record, sc.trace(made.model, made.inputs))
            if survey:
                alone(record, made)
    record.write()


if __name__ == "__main__":
    typer.run(main)
