"""`secateurs inspect`: what can be cut from a model, what cannot, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import flags
from .models import build, example_inputs, is_saved, parse_shape
from .objects import importable
from .stored import stored, table

if TYPE_CHECKING:
    from ..groups import Frozen, Graph


def inspect_model(
    model: flags.Model,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    weights: flags.Weights = None,
    original: flags.Original = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="List every frozen axis, not a summary by reason.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all of it.")] = False,
) -> None:
    """Show what can be cut from a model, what cannot and why, and what it costs.

    The model runs once; nothing in it changes. A group is a set of units (channels, neurons)
    that go together; each row names the modules that a cut would touch. Of a folder that was saved
    sparse, it shows how each tensor is coded, too.

    ```
    secateurs inspect torchvision:resnet18
    secateurs inspect my_model:build --input-shape 1,1,28,28 --frozen
    secateurs inspect timm:convnext_atto --json | jq .cost
    secateurs inspect runs/a --class my_model:build
    ```
    """
    from .. import trace
    from ..cost import Cost

    importable([Path.cwd()])
    shapes = [parse_shape(text) for text in input_shape or ()]
    network = build(model, weights, original=original)
    graph = trace(network, example_inputs(model, network, shapes, inputs))
    measures = Cost(graph).all()
    cost = {
        "params": measures["params"],
        "macs": measures["macs"],
        "flops": 2 * measures["macs"],
        "units": measures["units"],
    }
    file = stored(model) if is_saved(model) else None
    if as_json:
        record = {**_record(model, graph, cost), **({"file": file} if file else {})}
        typer.echo(json.dumps(record, indent=1))
        return
    typer.echo(f"{graph}\n")
    typer.echo(f"{_frozen_axes(graph.frozen) if frozen else _reasons(graph.frozen)}\n")
    typer.echo(_costs(cost))
    if file:
        typer.echo(f"\n{table(file)}")


def _record(model: str, graph: Graph, cost: dict[str, int]) -> dict[str, Any]:
    axes = [
        {"tensor": axis.tensor, "dim": axis.dim, "size": axis.size, "reason": axis.reason}
        for axis in graph.frozen
    ]
    groups = [
        {
            **record,
            "why_inexact": group.why_inexact,
            "writes": [str(member) for member in group.writes],
            "reads": [str(member) for member in group.reads],
            "carries": [str(member) for member in group.carries],
        }
        for record, group in zip(graph.records(), graph.groups, strict=True)
    ]
    return {"model": model, "cost": cost, "groups": groups, "frozen": axes}


def _reasons(frozen: list[Frozen]) -> str:
    from ..tables import render

    held: dict[str, list[str]] = {}
    for axis in frozen:
        held.setdefault(axis.reason, []).append(f"{axis.tensor}[{axis.dim}]")
    rows = [
        (reason, len(names), ", ".join(names[:2]) + (", …" if len(names) > 2 else ""))
        for reason, names in sorted(held.items(), key=lambda item: -len(item[1]))
    ]
    return render(
        f"{len(frozen)} frozen axes by reason (--frozen lists them)",
        ("why", "axes", "such as"),
        rows,
    )


def _frozen_axes(frozen: list[Frozen]) -> str:
    from ..tables import render

    rows = [(f"{axis.tensor}[{axis.dim}]", axis.size, axis.reason) for axis in frozen]
    return render(f"{len(frozen)} frozen axes", ("axis", "size", "why"), rows)


def _costs(cost: dict[str, int]) -> str:
    from ..tables import render

    names = {
        "params": "parameters",
        "macs": "MACs of one run on the inputs",
        "flops": "FLOPs (2 · MACs)",
        "units": "units that can be cut",
    }
    rows = [(names[name], f"{count:,}") for name, count in cost.items()]
    return render("cost", ("", "count"), rows)
