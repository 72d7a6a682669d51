"""What a criterion may know of each group before any data: the weights that touch its units."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from .criteria import GroupInfo
from .groups import Graph, Group, Member
from .trace.labels import axis_size
from .trace.model import model_tensors


def group_infos(
    model: nn.Module, graph: Graph, seed: int = 0, groups: Iterable[Group] | None = None
) -> dict[str, GroupInfo]:
    """The weights that write, read and scale the units of each group (all), unit by unit."""
    tensors = {name: tensor.detach() for name, tensor in model_tensors(model).items()}
    out = {}
    for group in graph.groups if groups is None else groups:
        scales = [m for m in group.carries if m.tensor in graph.analysis.scales]
        writes, reads, scaled = (
            _rows(graph, group, tensors, members) for members in (group.writes, group.reads, scales)
        )
        out[group.name] = GroupInfo(group.name, group.size, writes, reads, scaled, seed)
    return out


def _rows(
    graph: Graph, group: Group, tensors: dict[str, Tensor], members: list[Member]
) -> tuple[Tensor, ...]:
    """(size, elements) of each tensor; tensors that hold a part of the units each are joined."""
    if not members:
        return ()
    number = int(graph.group_of[group.units[0]])
    whole: list[Tensor] = []
    parts: list[tuple[Tensor, Tensor]] = []
    for member in members:
        axis = graph.analysis.tensor_axes(member.tensor, graph.program.tensors[member.tensor])
        indices, units = graph.axis_incidence(axis[member.dim])
        mine = graph.group_of[units] == number
        lines = _lines(tensors[member.tensor], member.dim, axis_size(axis[member.dim]))
        local = graph.index_of[units[mine]]
        order = np.argsort(local, kind="stable")
        distinct = np.unique(local)
        wanted = indices[mine][order]
        if len(wanted) == len(lines) and (wanted == np.arange(len(lines))).all():
            rows = lines.reshape(len(distinct), -1)  # all in order: nothing to copy
        else:
            rows = lines[torch.from_numpy(wanted).to(lines.device)].reshape(len(distinct), -1)
        if len(distinct) == group.size:
            whole.append(rows)
        else:
            parts.append((torch.from_numpy(distinct), rows))
    return (*whole, *_joined(parts, group.size))


def _joined(parts: list[tuple[Tensor, Tensor]], size: int) -> list[Tensor]:
    """Tensors of all units from tensors of some, where they fit together."""
    out: list[Tensor] = []
    while parts:
        width = parts[0][1].shape[1]
        fitting = [(u, r) for u, r in parts if r.shape[1] == width]
        units = torch.cat([u for u, _ in fitting])
        if len(units) != size or len(units.unique()) != size:
            return []
        joined = torch.cat([r for _, r in fitting])
        out.append(joined[units.argsort().to(joined.device)])
        parts = [(u, r) for u, r in parts if r.shape[1] != width]
    return out


def _lines(tensor: Tensor, dim: int, size: int) -> Tensor:
    """(size, elements): what each index of an axis holds; per block for a grouped kernel."""
    if tensor.shape[dim] == size:
        return tensor.movedim(dim, 0).reshape(size, -1)
    blocks = size // tensor.shape[dim]
    runs = tensor.unflatten(0, (blocks, -1)).movedim(dim + 1, 1)
    return runs.reshape(size, -1)
