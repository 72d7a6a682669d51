"""The diagonal of the second derivatives of the mean loss by the weights: ∂²C/∂w_k².

`obd_diagonal` is the recursion of Optimal Brain Damage, one walk back over the recorded program
with squared weights and squared derivatives; `gauss_newton_diagonal` is the exact diagonal of the
Gauss-Newton matrix, at one backward pass per output of the network and example.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from ..batches import Loss, Objective, check_loss, loss_of, total_loss
from ..curvature import Output, check_bent, hessian, hessian_rows, slope_at
from ..errors import DataError
from ..frontend import recorded
from ..trace.model import input_tensors, model_tensors
from ..trace.modes import evaluating
from ..trace.program import Node, Program, Ref
from .derivatives import examples_of, parameters_of
from .squares import Step, squared, unknown

_Each: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
ROOM = 2**25  # elements of per-example derivatives that are held at once


def obd_diagonal(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """h_kk = ∂²C/∂w_k² by the recursion of Optimal Brain Damage, C the mean loss in eval mode.

    From the output, where it is the loss's own second derivative, the diagonal goes back through
    each operation by the square of its Jacobian: ∂²C/∂x_a² = Σ_b (∂y_b/∂x_a)² ∂²C/∂y_b². A weight
    sums over the positions that share it. It costs little more than the gradient. Two things
    are dropped, as in the paper: f'' (the Levenberg-Marquardt form, which keeps h_kk ≥ 0 for a
    convex loss), and second derivatives by two different values at any point.

    Args:
        model, names, batches, loss, objective: see `Saliency.of`; the objective must call the
            model once.

    Returns:
        Path -> h_kk, of the shape of the parameter; zeros where the loss does not depend on it.

    Raises:
        DataError: no data, a loss of another shape, or an objective that calls the model twice.
        DerivativeError: an operation has no rule, or the loss no second derivative.
        NotFiniteError: the loss is NaN or infinite.
        TraceError: the model could not be recorded.

    Source: LeCun, Denker, Solla, Optimal Brain Damage (1990), equations 5 to 9.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1))]
    >>> obd_diagonal(net, ["weight"], data, loss=lambda y, t: (y - t).square().sum(1))
    {'weight': tensor([[ 2., 18.]])}
    """
    check_loss(loss, objective)
    own = parameters_of(model, names)
    total = {name: torch.zeros_like(p) for name, p in own.items()}
    recordings: dict[Any, Program] = {}
    seen, bent = 0, False
    with evaluating(model), torch.enable_grad():
        for batch, examples in examples_of(model, batches):
            walk = _Walk(model, own, recordings)
            tap = _Tap(model, walk.forward, examples)
            value, _ = total_loss(loss_of(tap, batch, loss, objective), examples)
            output, point = tap.taken()
            slope = slope_at(point, value)
            rows = enumerate(hessian_rows(point, slope))
            bends = torch.stack([row[:, k] for k, row in rows], 1)
            bent |= bool(bends.any())
            with torch.no_grad():
                for name, bend in walk.back(output.split(bends)).items():
                    total[name] += bend
            seen += examples
    check_bent("the second derivative", bent)
    return {name: found / seen for name, found in total.items()}


def gauss_newton_diagonal(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """The exact diagonal of the Gauss-Newton matrix, mean over examples of diag(JᵀHJ).

    J = ∂output/∂w of one example, and H = Σ_k s_k q_k q_kᵀ the loss's own Hessian in the output:
    Σ_k s_k (Jᵀq_k)², one backward pass per example and eigenvector, many at a time where
    the model lets itself be vectorised, in bounded memory.

    Args:
        model, names, batches, loss, objective: see `Saliency.of`; the model must treat examples
            apart, and the objective must call it once.

    Returns:
        Path -> the diagonal, of the shape of the parameter.

    Raises:
        DataError: no data, a loss of another shape, or an objective that calls the model twice.
        DerivativeError: the loss has no second derivative by the output, or there are too many
            outputs.
        NotFiniteError: the loss is NaN or infinite.

    Source: Schraudolph, Fast curvature matrix-vector products (2002), for the matrix.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1))]
    >>> gauss_newton_diagonal(net, ["weight"], data, loss=lambda y, t: (y - t).square().sum(1))
    {'weight': tensor([[ 2., 18.]])}
    """
    check_loss(loss, objective)
    own = parameters_of(model, names)
    total = {name: torch.zeros_like(p) for name, p in own.items()}
    seen, bent = 0, False
    with evaluating(model), torch.enable_grad(), _differentiable(model):
        for batch, examples in examples_of(model, batches):
            tap = _Tap(model, model, examples)
            value, _ = total_loss(loss_of(tap, batch, loss, objective), examples)
            _, point = tap.taken()
            values, vectors = _roots(hessian(point, slope_at(point, value)))
            bent |= bool(values.any())
            with torch.no_grad():
                for name, found in _diagonal(model, own, tap.call, values, vectors).items():
                    total[name] += found
            seen += examples
    check_bent("the second derivative", bent)
    return {name: found / seen for name, found in total.items()}


class _Tap:
    """Stands in for the model while the loss is taken, so that the output is a point of its own."""

    def __init__(self, model: nn.Module, run: Callable[..., Any], examples: int):
        self._model, self._run, self._examples = model, run, examples
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._seen: list[tuple[Output, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.call = (args, kwargs)
        with torch.no_grad():
            output = Output(self._run(*args, **kwargs), self._examples)
        point = output.matrix.detach().requires_grad_()
        self._seen.append((output, point))
        return output.unflatten(point)

    def taken(self) -> tuple[Output, Tensor]:
        """What the model gave, and the point at which the loss saw it."""
        if len(self._seen) != 1:
            raise DataError(
                f"the objective called the model {len(self._seen)} times, where second derivatives "
                "need one output: let it call model(...) itself, once"
            )
        return self._seen[0]


# ---------------------------------------------------------------------- the recursion
class _Walk:
    """One replay of the recorded program, and the walk back over it."""

    def __init__(
        self, model: nn.Module, own: Mapping[str, nn.Parameter], recordings: dict[Any, Program]
    ):
        self._model, self._own, self._recordings = model, own, recordings
        self._steps: dict[int, Step] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, by its recording; what the walk back needs is kept."""
        if kwargs and args:
            raise DataError("call the model with positional or with keyword arguments, not both")
        call: Any = kwargs if kwargs else args
        leaves, spec = pytree.tree_flatten(call)
        told = [(t.shape, t.dtype) if isinstance(t, Tensor) else repr(t) for t in leaves]
        key = (str(spec), *told)  # a recording bakes in all that is no tensor
        program = self._recordings.get(key)
        if program is None or program.looks:  # other values may take another way through the code
            program = self._recordings[key] = recorded(self._model, call)
        self.program = program
        tensors = model_tensors(self._model)
        paths = {id(tensors[path]): ident for path, ident in self.program.tensors.items()}
        self.idents = {name: paths[id(p)] for name, p in self._own.items() if id(p) in paths}
        return self.program.replay(
            tensors, input_tensors(call), instead=dict(self._watched(set(self.idents.values())))
        )

    def _watched(self, reached: set[int]) -> Iterable[tuple[int, Callable[..., Any]]]:
        """The nodes that depend on the parameters, as functions that keep what they see."""
        for position, node in enumerate(self.program.nodes):
            wanted = tuple(
                i in reached and self.program.values[i].dtype.is_floating_point for i in node.inputs
            )
            if any(wanted):
                if node.op._schema.is_mutable:  # whoever sees it by another name would be missed
                    raise unknown(
                        node,
                        "second derivatives cannot go back through what is seen "
                        "by several names and changed in place by",
                    )
                reached.update(out for out in node.outputs if out is not None)
                yield position, self._kept(position, node, wanted)

    def _kept(self, position: int, node: Node, wanted: tuple[bool, ...]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = node.op(*args, **kwargs)
            results = tuple(result) if node.multiple else (result,)
            self._steps[position] = Step(node, args, kwargs, results, wanted)
            return result

        return run

    def back(self, output: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """∂²C/∂w² of each parameter, from those by the leaves of the output."""
        bends: dict[int, Tensor] = {}
        for i, leaf in enumerate(pytree.tree_leaves(self.program.outputs)):
            if isinstance(leaf, Ref) and i in output:
                _add(bends, leaf.id, output[i])
        for position in reversed(self._steps):
            step = self._steps[position]
            own = [None if out is None else bends.pop(out, None) for out in step.node.outputs]
            if all(bend is None for bend in own):
                continue
            for ident, bend in zip(step.node.inputs, squared(step, own), strict=True):
                if bend is not None:
                    _add(bends, ident, bend)
        return {name: bends[i] for name, i in self.idents.items() if i in bends}


def _add(bends: dict[int, Tensor], ident: int, bend: Tensor) -> None:
    bends[ident] = bends[ident] + bend if ident in bends else bend


# ---------------------------------------------------------------------- exact
@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, an LSTM does without oneDNN, whose backward pass fails under `torch.func`."""
    if not any(isinstance(module, nn.LSTM) for module in model.modules()):
        yield  # convolutions are faster with it
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # which nobody asked for
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _roots(bends: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (examples, k) and eigenvectors (examples, k, outputs), without what is zero."""
    wide = bends.to(torch.promote_types(bends.dtype, torch.float32))
    values, vectors = torch.linalg.eigh(wide)
    kept = (values.abs() > values.abs().amax() * torch.finfo(values.dtype).eps).any(0)
    return values[:, kept].to(bends), vectors.mT[:, kept].to(bends)


def _diagonal(
    model: nn.Module,
    own: Mapping[str, nn.Parameter],
    call: Any,
    values: Tensor,
    vectors: Tensor,
) -> dict[str, Tensor]:
    """Σ over examples of Σ_k s_k (Jᵀq_k)², in parts that fit."""
    once: dict[int, str] = {
        id(p): name for name, p in own.items()
    }  # a shared one has several names
    weights = {name: own[name].detach() for name in once.values()}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    leaves, spec = pytree.tree_flatten(call)
    apart = [
        i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.shape[:1] == values.shape[:1]
    ]

    def one(each: _Each, values: Tensor, vectors: Tensor, *rows: Tensor) -> dict[str, Tensor]:
        """Of one example, whose inputs are these rows."""
        filled = list(leaves)
        for i, row in zip(apart, rows, strict=True):
            filled[i] = row[None]
        args, kwargs = pytree.tree_unflatten(filled, spec)

        def output(weights: dict[str, Tensor]) -> Tensor:
            return Output(functional_call(model, weights, args, kwargs), 1).matrix[0]

        pull = torch.func.vjp(output, weights)[1]
        slopes: dict[str, Tensor] = each(lambda vector: pull(vector)[0])(vectors)
        return {name: torch.tensordot(values, s.square(), 1) for name, s in slopes.items()}

    size = sum(p.numel() for p in weights.values())
    most = max(1, ROOM // max(size, 1))
    inputs = [leaves[i] for i in apart]
    for k in range(0, values.shape[1], most):
        part = [values[:, k : k + most], vectors[:, k : k + most], *inputs]
        at_once = max(1, most // part[0].shape[1])
        for rows in zip(*(tensor.split(at_once) for tensor in part), strict=True):
            for name, found in _each_of(one, *rows).items():
                total[name] += found.sum(0)
    return {name: total[once[id(p)]] for name, p in own.items()}


def _each_of(one: Callable[..., dict[str, Tensor]], *rows: Tensor) -> dict[str, Tensor]:
    """All examples at once; one by one where the model does not let itself be vectorised."""
    try:
        return vmap(functools.partial(one, vmap))(*rows)
    except (RuntimeError, ValueError, NotImplementedError):
        return _loop(functools.partial(one, _loop))(*rows)


def _loop(function: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """What `vmap` computes, row by row."""

    def run(*rows: Tensor) -> dict[str, Tensor]:
        found = [function(*row) for row in zip(*rows, strict=True)]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}

    return run
