"""Score every unit of every group by a criterion, from batches of data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .batches import Loss, Objective, check_loss, loss_of, to_device
from .criteria import Criterion, GroupBatch, GroupInfo, find_criterion
from .errors import DataError, NotFiniteError
from .groups import Graph, Group
from .trace.labels import leaves
from .trace.record import as_call, evaluating, model_tensors
from .watch import Seen, Watched


@dataclass(frozen=True)
class Scores:
    """One importance per unit per group, higher = keep.

    Attributes:
        values: group -> (units,) float64; `scores[group]` is the same.
        criterion: its name.
        examples: how many examples were seen.
        assumed: how the loss was read: one value per example, or the mean over examples.

    >>> import numpy as np
    >>> scores = Scores({"conv1": np.array([0.2, 0.1, 0.3])}, "taylor", examples=64)
    >>> scores["conv1"].argsort()[:2].tolist()  # the two least important units
    [1, 0]
    """

    values: dict[str, npt.NDArray[np.float64]]
    criterion: str
    examples: int = 0
    assumed: str = ""

    def __getitem__(self, group: str) -> npt.NDArray[np.float64]:
        """The importance of each unit of a group, (units,)."""
        return self.values[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """The scores that `to_dict` described."""
        values = {name: np.asarray(v, dtype=np.float64) for name, v in data["values"].items()}
        return cls(values, data["criterion"], data["examples"], data["assumed"])

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data."""
        values = {name: array.tolist() for name, array in self.values.items()}
        return {
            "criterion": self.criterion,
            "examples": self.examples,
            "assumed": self.assumed,
            "values": values,
        }


def score(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any] | None = None,
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
    criterion: str | Criterion = "taylor",
    batches: int | None = None,
    seed: int = 0,
    share: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
) -> Scores:
    """The importance of every unit of every group.

    Args:
        model: the model that was traced; it runs in eval mode and is left untouched.
        graph: its trace.
        data: batches; pairs (input, target) for `loss`, anything for `objective`. Not needed by
            criteria that look at weights only.
        loss: loss(output, target) -> one value per example, (examples,), which is preferred and
            exact with class weights and ignored labels; or the scalar mean over the examples.
        objective: objective(model, batch) -> the same, for anything that is not a pair.
        criterion: a name in `secateurs.criteria.CRITERIA`, or an object with the four functions.
        batches: use at most so many batches.
        seed: for criteria that draw numbers.
        share: with data parallel workers, each with its part of the data: this worker's states
            -> the states of all workers, which are then merged.

    Returns:
        One float64 array per group, (units,), higher = keep. They are raw: compare units within a
        group; `secateurs.ranking.importance` makes groups comparable.

    Raises:
        DataError: no data, batches that are not pairs, or a loss of another shape.
        NotFiniteError: the loss or a score is NaN or infinite.
        ConfigError: an unknown criterion.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> scores = sc.score(net, sc.trace(net, x), [(x, y)], loss=cross_entropy)
    >>> scores["0"].shape
    (8,)
    """
    found = find_criterion(criterion)
    infos = group_infos(model, graph, seed)
    states = {name: found.init(info) for name, info in infos.items()}
    examples, assumed = 0, ""
    if found.needs:
        states, examples, assumed = _run(
            model, graph, data, loss, objective, found, states, batches
        )
    if share is not None:
        first, *others = share(states)
        states = {n: functools.reduce(found.merge, (o[n] for o in others), first[n]) for n in first}
    values = {}
    for name, state in states.items():
        array = found.score(state).detach().double().cpu().numpy()
        if array.shape != (infos[name].size,):
            raise DataError(
                f"criterion {found.name!r} gave {array.shape} scores for the "
                f"{infos[name].size} units of group {name!r}"
            )
        if not np.isfinite(array).all():
            raise NotFiniteError(f"criterion {found.name!r} gave scores that are not finite")
        values[name] = array
    return Scores(values, found.name, examples, assumed)


def _run(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any] | None,
    loss: Loss | None,
    objective: Objective | None,
    criterion: Criterion,
    states: dict[str, Any],
    batches: int | None,
) -> tuple[dict[str, Any], int, str]:
    if data is None:
        raise DataError(f"criterion {criterion.name!r} needs data; pass batches of it")
    gradients = "gradient" in criterion.needs
    if gradients:
        check_loss(loss, objective)
    own = next(iter(model.parameters()), torch.zeros(0))
    watched = Watched(model, graph, criterion.needs)
    examples, assumed = 0, ""
    with evaluating(model), torch.set_grad_enabled(gradients):
        for batch in itertools.islice(data, batches):
            seen = watched.seen = Seen()
            batch = to_device(batch, own.device)
            if gradients:
                value = loss_of(watched, batch, loss, objective)
                _check_called(seen)
                total, assumed = _total(value, seen.examples)
                if seen.leaves:
                    total.backward(inputs=seen.leaves)
            else:
                _call(watched, batch)
            examples += seen.examples
            for group in graph.groups:
                shown = GroupBatch(
                    _rows(seen, seen.gradient, group),
                    _rows(seen, seen.activation, group) / max(seen.calls, 1),
                )
                states[group.name] = criterion.update(states[group.name], shown)
    if not examples:
        raise DataError("the data is empty: no batch was given to score with")
    return states, examples, assumed


def _call(model: Watched, batch: Any) -> None:
    """Run the model on a batch, or on the input of a pair."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    args, kwargs = as_call(batch[0] if pair else batch)
    model(*args, **kwargs)


def _check_called(seen: Seen) -> None:
    if not seen.calls:
        raise DataError(
            "the objective must call model(...) itself: a call of one of its submodules is not seen"
        )


def _rows(seen: Seen, shown: dict[str, Tensor], group: Group) -> Tensor:
    """(examples, units); zeros where the loss does not depend on the group."""
    rows = shown.get(group.name)
    return torch.zeros(seen.examples, group.size) if rows is None else rows.detach()


def _total(value: Any, examples: int) -> tuple[Tensor, str]:
    """The sum over examples of a loss, and how it was read."""
    if not isinstance(value, Tensor):
        raise DataError(f"the loss must be a tensor, not {type(value).__name__}")
    if not bool(torch.isfinite(value).all()):
        raise NotFiniteError("the loss is not finite (NaN or infinite); scores mean nothing")
    if value.dim() == 0:
        return value * examples, "a scalar loss, read as the mean over examples"
    if value.numel() == examples:
        return value.sum(), "one loss per example"
    raise DataError(
        f"the loss has shape {tuple(value.shape)}: return one value per example, ({examples},), "
        "or the scalar mean over examples"
    )


def group_infos(model: nn.Module, graph: Graph, seed: int = 0) -> dict[str, GroupInfo]:
    """What a criterion may know of each group before any data."""
    tensors = model_tensors(model)
    out = {}
    for number, group in enumerate(graph.groups):
        weights = []
        for member in group.writes or group.axes:
            axis = _member_axis(graph, member.tensor, member.dim)
            indices, units = graph.axis_incidence(axis)
            mine = graph.group_of[units] == number
            lines = _lines(tensors[member.tensor].detach(), member.dim, len(indices_of(axis)))
            local = graph.index_of[units[mine]]
            order = np.argsort(local, kind="stable")
            if len(np.unique(local)) == group.size:
                rows = lines[torch.from_numpy(indices[mine][order]).to(lines.device)]
                weights.append(rows.reshape(group.size, -1))
        out[group.name] = GroupInfo(group.name, group.size, tuple(weights), seed)
    return out


def _member_axis(graph: Graph, tensor: str, dim: int) -> Any:
    return graph.analysis.tensor_axes(tensor, graph.program.tensors[tensor])[dim]


def indices_of(axis: Any) -> range:
    """The indices of an axis."""
    return range(int(np.prod([leaf.size for leaf in leaves(axis)])))


def _lines(tensor: Tensor, dim: int, size: int) -> Tensor:
    """(size, elements): what each index of an axis holds; per block for a grouped kernel."""
    if tensor.shape[dim] == size:
        return tensor.movedim(dim, 0).reshape(size, -1)
    blocks = size // tensor.shape[dim]
    runs = tensor.unflatten(0, (blocks, -1)).movedim(dim + 1, 1)
    return runs.reshape(size, -1)
