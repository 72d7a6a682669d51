"""Second derivatives of the loss by the gates, one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import DataError, DerivativeError
from .watch import Seen

_ONCE = "torch::autograd::Error"  # what PyTorch leaves behind a function of one derivative
LIMIT = 4096  # outputs per example, beyond which their Hessian is too large to hold


def take_derivatives(total: Tensor, seen: Seen, *, second: bool) -> None:
    """Fill in `gradient` and, with `second`, `hessian`, from the gates that were put in.

    Args:
        total: the sum over examples of the loss.
        seen: what the replay has shown, with its gates.
        second: also Σ_j ∂²C_n/∂g_i∂g_j, by one more backward pass through the first.

    Raises:
        DerivativeError: the loss cannot be differentiated (twice) by the gates.
    """
    gates = [gate for _, gate in seen.gates]
    slopes = _grad(_twice(total) if second else total, gates, create_graph=second)
    for (family, _), slope in zip(seen.gates, slopes, strict=True):
        seen.add_gradient(family, slope.detach())
    if second:
        whole = torch.stack([slope.sum() for slope in slopes]).sum()
        seen.hessian = _by_group(seen, _grad(whole, gates))


def _twice(total: Tensor) -> Tensor:
    """The same loss, whose derivative is part of a graph even where it is constant.

    Without it, PyTorch takes a function that can be differentiated once for a linear one.
    """
    return total * torch.ones_like(total).requires_grad_()


def take_gauss_newton(
    loss: Callable[[object], Tensor], seen: Seen, probes: int, seeds: Sequence[int]
) -> None:
    """Fill in `gauss_newton`: diag(Jᵀ H J) of each example, by the output that was seen.

    Args:
        loss: output -> the sum over examples of the loss.
        seen: what the replay has shown, with its gates and its output.
        probes: how many estimates; 0 computes it exactly.
        seeds: for each example, where its random signs come from.

    Raises:
        DerivativeError: the loss has no second derivative by the output, or there are too many
            outputs to compute it exactly.
        DataError: the examples cannot be told apart in the output.
    """
    output = Output(seen.output, seen.examples)
    if probes:
        signs = _signs(seeds, probes, output.matrix.shape[1])
        found = [_probe(loss, seen, output, own) for own in signs.unbind(1)]
    else:
        found = [_exact(loss, seen, output)]
    groups = dict.fromkeys(family.group for family, _ in seen.gates)
    seen.gauss_newton = {g: torch.stack([one[g] for one in found], 2) for g in groups}


def check_bent(what: str, bent: bool) -> None:
    """Refuse second derivatives in the Gauss-Newton form that are all zero: they rank nothing.

    Raises:
        DerivativeError: the loss has no second derivative by the output on any example.
    """
    if not bent:
        raise DerivativeError(
            f"{what} is 0 throughout: on this data, the loss is linear in the "
            "network's output. If the network ends in log_softmax, put that in the loss "
            "(CrossEntropyLoss, not NLLLoss); or choose a criterion of first order"
        )


class Output:
    """What the model returned, as one (examples, outputs) matrix."""

    def __init__(self, value: object, examples: int):
        self.leaves, self.spec = pytree.tree_flatten(value)
        self.examples = examples
        self.free = [
            i
            for i, leaf in enumerate(self.leaves)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        for i in self.free:
            if self.leaves[i].dim() == 0 or len(self.leaves[i]) != examples:
                raise DataError(
                    f"the model returns a tensor of shape {tuple(self.leaves[i].shape)} for "
                    f"{examples} examples, in which they cannot be told apart"
                )
        self.matrix = torch.cat([self.leaves[i].flatten(1) for i in self.free], 1)

    def split(self, matrix: Tensor) -> dict[int, Tensor]:
        """The matrix in the shapes of the tensors that the model returned, by their leaf."""
        sizes = [self.leaves[i].numel() // self.examples for i in self.free]
        parts = zip(self.free, matrix.split(sizes, 1), strict=True)
        return {i: part.reshape(self.leaves[i].shape) for i, part in parts}

    def unflatten(self, matrix: Tensor) -> object:
        """The matrix in the form in which the model returned it."""
        parts = self.split(matrix)
        leaves = [parts.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        return pytree.tree_unflatten(leaves, self.spec)


def _exact(loss: Callable[[object], Tensor], seen: Seen, output: Output) -> dict[str, Tensor]:
    """Σ_k s_k (Jᵀq_k)² over the eigenvalues s_k and eigenvectors q_k of H."""
    count = output.matrix.shape[1]
    point, slope = _slope(loss, output)
    bends = hessian(point, slope)
    values, vectors = torch.linalg.eigh(bends.to(torch.promote_types(bends.dtype, torch.float32)))
    size = values.abs().amax()
    out: dict[str, Tensor] = {}
    for k in range(count):
        if bool((values[:, k].abs() <= size * torch.finfo(values.dtype).eps).all()):
            continue
        for group, along in _pulled(seen, output, vectors[:, :, k].to(bends)).items():
            term = values[:, k, None] * along.square()
            out[group] = out[group] + term if group in out else term
    return out or _pulled(seen, output, torch.zeros_like(output.matrix))


def _signs(seeds: Sequence[int], probes: int, outputs: int) -> Tensor:
    """(examples, probes, outputs) of 1 and −1, those of an example from its seed alone."""
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    bits = [torch.randint(2, (probes, outputs), generator=draw) for draw in draws]
    return torch.stack(bits) * 2 - 1


def _probe(
    loss: Callable[[object], Tensor], seen: Seen, output: Output, signs: Tensor
) -> dict[str, Tensor]:
    """(Jᵀr)_i (JᵀHr)_i for one vector r of random signs per example."""
    point, slope = _slope(loss, output)
    signs = signs.to(slope)
    [bent] = _grad((slope * signs).sum(), [point])
    left, right = (_pulled(seen, output, side) for side in (signs, bent))
    return {group: left[group] * right[group] for group in left}


def _slope(loss: Callable[[object], Tensor], output: Output) -> tuple[Tensor, Tensor]:
    """A point of its own at the output, and the derivative of the loss there."""
    point = output.matrix.detach().requires_grad_()
    return point, slope_at(point, loss(output.unflatten(point)))


def slope_at(point: Tensor, total: Tensor) -> Tensor:
    """∂C/∂y at the output, (examples, outputs), as part of a graph.

    Raises:
        DerivativeError: the loss cannot be differentiated (twice) by the output.
    """
    return _grad(_twice(total), [point], create_graph=True)[0]


def hessian(point: Tensor, slope: Tensor) -> Tensor:
    """∂²C_n/∂y_i∂y_j at the output of each example, (examples, outputs, outputs).

    Raises:
        DerivativeError: there are too many outputs to hold it.
    """
    return torch.stack(list(hessian_rows(point, slope)), 1)


def hessian_rows(point: Tensor, slope: Tensor) -> Iterator[Tensor]:
    """The same, a row (examples, outputs) at a time."""
    count = point.shape[1]
    if count > LIMIT:
        raise DerivativeError(
            f"the network has {count} outputs per example, too many for the exact second "
            "derivative; estimate it, as in criterion 'obd-hutchinson'"
        )
    for k in range(count):
        yield _grad(slope[:, k].sum(), [point], retain_graph=True)[0]


def _pulled(seen: Seen, output: Output, rows: Tensor) -> dict[str, Tensor]:
    """Group -> Jᵀ times one (examples, outputs) matrix, (examples, units)."""
    gates = [gate for _, gate in seen.gates]
    return _by_group(seen, _grad(output.matrix, gates, rows, retain_graph=True))


def _by_group(seen: Seen, rows: list[Tensor]) -> dict[str, Tensor]:
    """The derivatives by the gates of a group at all its reads, summed."""
    out: dict[str, Tensor] = {}
    for (family, _), own in zip(seen.gates, rows, strict=True):
        out[family.group] = out[family.group] + own if family.group in out else own
    return {group: own.detach() for group, own in out.items()}


def _grad(
    value: Tensor,
    by: list[Tensor],
    rows: Tensor | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    if not value.requires_grad:
        raise DerivativeError("the loss does not depend on the network, or is detached from it")
    try:
        found = torch.autograd.grad(
            value,
            by,
            rows,
            create_graph=create_graph,
            retain_graph=retain_graph,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise _refused(str(error)) from error
    if create_graph:
        _check_twice(found)
    return list(found)


def _check_twice(slopes: Sequence[Tensor]) -> None:
    """Refuse what can be differentiated once: PyTorch would take it for linear."""
    todo = [slope.grad_fn for slope in slopes if slope.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node.name() == _ONCE:
            raise _refused("a function in the network or the loss can be differentiated only once")
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        todo += new


def _refused(why: str) -> DerivativeError:
    return DerivativeError(
        f"PyTorch cannot take the second derivative: {why}; choose a criterion of first order, "
        "such as 'taylor-squared' or 'fisher'"
    )
