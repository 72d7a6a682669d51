"""What a trace found, and where a run was made, as the plain data that a record keeps."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..files.store import unique_state
from ..groups import Graph
from ..ranking import Limits
from ..report.record import FrozenAxis, GroupRecord, Layer, Network, Origin
from ..version import __version__


def describe(model: nn.Module, example_inputs: Any, graph: Graph, limits: Limits) -> Network:
    """The uncut network: its groups, layers and frozen axes."""
    tensors = [t for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor)]
    frozen: dict[str, list[FrozenAxis]] = {}
    for axis in graph.frozen:
        held = FrozenAxis(tensor=axis.tensor, dim=axis.dim, size=axis.size)
        frozen.setdefault(axis.reason, []).append(held)
    return Network(
        name=type(model).__name__,
        inputs=[f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors],
        bytes=size_in_bytes(model),
        groups=[
            GroupRecord(
                name=group.name,
                kind=group.kind,
                size=group.size,
                why_inexact=group.why_inexact,
                allowed=limits.allows(group),
                members=group.members,
            )
            for group in graph.groups
        ],
        layers=list(_layers(graph)),
        frozen=frozen,
    )


def _layers(graph: Graph) -> Iterable[Layer]:
    """The weights that make units, in the order of the model."""
    roles = graph.analysis.roles
    for name, shape in graph.program.parameters.items():
        if len(shape) > 1:  # a bias makes none of its own
            for dim, size in enumerate(shape):
                if roles.get((name, dim)) == "writes":
                    yield Layer(tensor=name, dim=dim, size=size)


def size_in_bytes(model: nn.Module) -> int:
    """What the parameters and buffers of a model take."""
    return sum(tensor.nbytes for tensor in unique_state(model).values())


def origin(device: object, command: str) -> Origin:
    """This process, now."""
    return Origin(
        versions={
            "secateurs": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        platform=f"{platform.system()} {platform.machine()}",
        device=str(device),
        threads=torch.get_num_threads(),
        command=command,
        finished=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def script() -> str:
    """The script that this process runs with its arguments; empty at a prompt or in a notebook."""
    name = Path(sys.argv[0])
    if name.suffix != ".py" or not name.is_file() or "ipykernel" in name.name:
        return ""
    return shlex.join(["python", *sys.argv])
