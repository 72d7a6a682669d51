"""Second derivatives through one operation: its Jacobian, squared entry by entry and transposed.

With y = f(x) and J = ∂y/∂x, the diagonal ∂²C/∂x_a² ≈ Σ_b J_ba² ∂²C/∂y_b². Few kinds of operations
need a rule, since J² is often the Jacobian of something that PyTorch can run:

- data movement, sums and maxima have entries 0 and 1: J² = J;
- a contraction is linear in each operand, with one product per entry: J² is the Jacobian of the
  same operation on squared operands;
- elementwise operations have one entry per element: its square;
- means have one entry 1/n per element that they read: J² = J/n;
- normalisation and softmax have dense Jacobians of closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import DerivativeError
from ..trace.program import Node
from ..trace.rules import is_pointwise, op_name

Bends: TypeAlias = list[Tensor | None]
Rule: TypeAlias = Callable[["Step", Bends], Bends]

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


@dataclass(frozen=True)
class Step:
    """One operation as it ran.

    Attributes:
        node: which.
        args, kwargs: what it was given.
        results: what it gave.
        wanted: for each tensor that it was given, in order, whether its second derivatives are
            asked for.
    """

    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]
    wanted: tuple[bool, ...]

    @property
    def operands(self) -> list[Tensor]:
        """The tensors that it was given, in the order of `node.inputs`."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run(self, operands: Sequence[Tensor]) -> tuple[Any, ...]:
        """The operation on other operands, in their order."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        others = iter(operands)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        result = self.node.op(*args, **kwargs)
        return tuple(result) if self.node.multiple else (result,)


def squared(step: Step, bends: Bends) -> Bends:
    """∂²C/∂x² of each operand x, from those of the results; None for what is not wanted.

    Raises:
        DerivativeError: there is no rule for this operation.
    """
    found = RULES.get(op_name(step.node.op))
    if found is not None:
        return found(step, bends)
    if is_pointwise(step.node.op):
        return _pointwise(step, bends)
    raise unknown(step.node, "no rule takes second derivatives back through")


def unknown(node: Node, why: str) -> DerivativeError:
    where = f" in {node.module!r}" if node.module else ""
    return DerivativeError(
        f"{why} {node.op}{where}; choose saliency 'gauss-newton', which is exact and goes through "
        "any operation, or one of first order, such as 'taylor'"
    )


# ---------------------------------------------------------------------- J² is a Jacobian
def pulled(step: Step, operands: Sequence[Tensor], bends: Bends) -> Bends:
    """The plain derivative: Jᵀ at these operands times the bends."""
    leaves = [
        tensor.detach().requires_grad_(wanted)
        for tensor, wanted in zip(operands, step.wanted, strict=True)
    ]
    with torch.enable_grad():
        results = step.run(leaves)
    pairs = [(y, b) for y, b in zip(results, bends, strict=True) if b is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            [leaf for leaf, wanted in zip(leaves, step.wanted, strict=True) if wanted],
            [b for _, b in pairs],
            allow_unused=True,
        )
    )
    return [next(found) if wanted else None for wanted in step.wanted]


@rule(
    "view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten permute transpose t "
    "numpy_T expand cat stack slice split split_with_sizes unsafe_split unsafe_split_with_sizes "
    "select unbind roll flip constant_pad_nd repeat unfold diagonal diagonal_copy index "
    "index_select gather embedding pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d tril triu cumsum sum amax amin max min topk sort "
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d "
    "im2col col2im slice_scatter select_scatter index_add scatter_add"
)
def _moves(step: Step, bends: Bends) -> Bends:
    """Every entry is 0 or 1: what was chosen gets all of it."""
    return pulled(step, step.operands, bends)


@rule("convolution mm addmm bmm baddbmm mv dot")
def _contraction(step: Step, bends: Bends) -> Bends:
    """Σ w² of what an element is multiplied by, on either side."""
    factors = {k: v**2 for k, v in step.kwargs.items() if k in ("alpha", "beta")}
    step = replace(step, kwargs={**step.kwargs, **factors})
    return pulled(step, [tensor.square() for tensor in step.operands], bends)


# ---------------------------------------------------------------------- elementwise
def _pointwise(step: Step, bends: Bends) -> Bends:
    """f'² of each operand; one that comes twice, as in x · x, has one derivative in all."""
    ids = step.node.inputs
    first = {ident: ids.index(ident) for ident in ids}
    at = {ident: n for n, ident in enumerate(first)}
    found = elementwise(
        lambda *once: step.run([once[at[ident]] for ident in ids])[0],
        [step.operands[place] for place in first.values()],
        [step.wanted[place] for place in first.values()],
        _only(bends),
    )
    placed = dict(zip(first.values(), found, strict=True))
    return [placed.get(place) for place in range(len(ids))]


def elementwise(
    function: Callable[..., Tensor],
    operands: Sequence[Tensor],
    wanted: Sequence[bool],
    bend: Tensor,
) -> Bends:
    """(∂y_b/∂x_b)² ∂²C/∂y_b² of each operand, summed over what it was broadcast to."""
    leaves = [
        tensor.detach().expand(bend.shape).requires_grad_(own)
        for tensor, own in zip(operands, wanted, strict=True)
    ]
    with torch.enable_grad():
        y = function(*leaves)
    own = [leaf for leaf in leaves if leaf.requires_grad]
    if not y.requires_grad:  # it is rounded or compared: nothing goes back
        return [None for _ in leaves]
    slopes = iter(torch.autograd.grad(y, own, torch.ones_like(y), materialize_grads=True))
    return [
        (next(slopes).square() * bend).sum_to_size(tensor.shape) if leaf.requires_grad else None
        for leaf, tensor in zip(leaves, operands, strict=True)
    ]


def _only(bends: Bends) -> Tensor:
    """The second derivatives by the first result, where the others are not read."""
    first = bends[0]
    if first is None or any(bend is not None for bend in bends[1:]):
        raise DerivativeError("a statistic that an operation gives beside its result is read")
    return first


# ---------------------------------------------------------------------- means
@rule("mean")
def _mean(step: Step, bends: Bends) -> Bends:
    bend = _only(bends)
    return pulled(step, step.operands, [bend * (bend.numel() / step.operands[0].numel())])


@rule("avg_pool2d avg_pool3d")
def _average(step: Step, bends: Bends) -> Bends:
    """What an element is divided by: a window of ones, averaged and summed."""
    given: dict[str, Any] = {
        "stride": [],
        "padding": 0,
        "ceil_mode": False,
        "count_include_pad": True,
    }
    names = ("kernel_size", *given)
    given |= _by_name(step)
    ones = torch.ones_like(step.operands[0][:1])
    shares = step.node.op(ones, *step.args[1:], **step.kwargs)
    shares = shares / step.node.op(ones, *(given[name] for name in names), 1)
    return pulled(step, step.operands, [_only(bends) * shares])


@rule("_adaptive_avg_pool2d _adaptive_avg_pool3d")
def _adaptive_average(step: Step, bends: Bends) -> Bends:
    """The window of output i covers ⌊i n/m⌋ to ⌈(i+1) n/m⌉."""
    bend = _only(bends)
    for d, m in enumerate(step.args[1], -len(step.args[1])):
        n, i = step.operands[0].shape[d], torch.arange(m, device=bend.device)
        width = ((i + 1) * n + m - 1) // m - i * n // m
        bend = bend / width.reshape(-1, *[1] * (-1 - d))
    return pulled(step, step.operands, [bend])


# ---------------------------------------------------------------------- normalisation
@rule("native_batch_norm cudnn_batch_norm miopen_batch_norm batch_norm "
      "_native_batch_norm_legit_no_training")  # fmt: skip
def _batch_norm(step: Step, bends: Bends) -> Bends:
    """In eval mode a scale and a shift per channel; instance norm takes statistics all the same."""
    given, bend = _by_name(step), _only(bends)
    if given.get("training"):
        return _normalised(step, bend, lambda x: x.transpose(0, 1).flatten(1), bend.dim() - 2)
    names = ("input", "weight", "bias", "running_mean", "running_var")
    there = [name for name in names if given[name] is not None]

    def affine(*tensors: Tensor) -> Tensor:
        own = dict(zip(there, tensors, strict=True))
        y = (own["input"] - own["running_mean"]) * torch.rsqrt(own["running_var"] + given["eps"])
        return y * own.get("weight", 1.0) + own.get("bias", 0.0)

    shaped = [x if i == 0 else _ending(x, bend.dim() - 2) for i, x in enumerate(step.operands)]
    return _shaped_like(step.operands, elementwise(affine, shaped, step.wanted, bend))


@rule("native_layer_norm")
def _layer_norm(step: Step, bends: Bends) -> Bends:
    own = len(step.args[1])
    return _normalised(step, _only(bends), lambda x: x.flatten(-own), 0)


@rule("native_group_norm")
def _group_norm(step: Step, bends: Bends) -> Bends:
    given, bend = _by_name(step), _only(bends)
    rows = (given["N"], given["group"], -1)
    return _normalised(step, bend, lambda x: x.reshape(rows), bend.dim() - 2)


def _normalised(step: Step, bend: Tensor, rows: Callable[[Tensor], Tensor], after: int) -> Bends:
    """Statistics are taken of what is there: x̂ = (x − μ)/σ, then a scale and a shift.

    Args:
        bend: of the result.
        rows: puts the elements that are normalised together on the last axis.
        after: how many axes come after those of the scale and the shift.
    """
    given = _by_name(step)
    there = [name for name in ("weight", "bias") if given[name] is not None]
    places = rows(torch.arange(bend.numel(), device=bend.device).reshape(bend.shape))

    def back(x: Tensor) -> Tensor:
        return torch.empty_like(bend).flatten().put_(places, x).reshape(bend.shape)

    x = rows(step.operands[0])
    scale = torch.rsqrt(x.var(-1, correction=0, keepdim=True) + given["eps"])
    normal = (x - x.mean(-1, keepdim=True)) * scale

    def affine(normal: Tensor, *rest: Tensor) -> Tensor:
        own = dict(zip(there, rest, strict=True))
        return normal * own.get("weight", 1.0) + own.get("bias", 0.0)

    shaped = [back(normal), *(_ending(given[name], after) for name in there)]
    wanted = [True, *step.wanted[1 : len(shaped)]]
    inner, *others = elementwise(affine, shaped, wanted, bend)
    first = back(_through_norm(normal, scale, rows(_only([inner]))))
    rest = [None] * (len(step.operands) - len(shaped))  # running statistics
    return _shaped_like(step.operands, [first if step.wanted[0] else None, *others, *rest])


def _ending(x: Tensor, after: int) -> Tensor:
    """With so many axes of size one at its end."""
    return x.reshape(*x.shape, *[1] * after)


def _shaped_like(tensors: Sequence[Tensor], bends: Bends) -> Bends:
    pairs = zip(tensors, bends, strict=True)
    return [None if bend is None else bend.reshape(x.shape) for x, bend in pairs]


def _through_norm(normal: Tensor, scale: Tensor, bend: Tensor) -> Tensor:
    """With J_ij = (δ_ij − e_ij)/σ and e_ij = (1 + x̂_i x̂_j)/n, over the last axis."""
    n = normal.shape[-1]
    sums = [(bend * normal**power).sum(-1, keepdim=True) for power in range(3)]
    dense = sums[0] + 2 * normal * sums[1] + normal.square() * sums[2]
    own = bend * (1 - 2 * (1 + normal.square()) / n)
    return scale.square() * (own + dense / n**2)


@rule("_softmax _safe_softmax softmax")
def _softmax(step: Step, bends: Bends) -> Bends:
    """J_ij = p_i (δ_ij − p_j)."""
    bend, p, dim = _only(bends), step.results[0], step.args[1]
    through = (p.square() * bend).sum(dim, keepdim=True)
    return [p.square() * ((1 - 2 * p) * bend + through)]


@rule("_log_softmax log_softmax")
def _log_softmax(step: Step, bends: Bends) -> Bends:
    """J_ij = δ_ij − p_j."""
    bend, p, dim = _only(bends), step.results[0].exp(), step.args[1]
    return [(1 - 2 * p) * bend + p.square() * bend.sum(dim, keepdim=True)]


def _by_name(step: Step) -> dict[str, Any]:
    """The arguments of an operation by the names of its schema."""
    names = [argument.name.replace("epsilon", "eps") for argument in step.node.op._schema.arguments]
    return {**dict(zip(names, step.args, strict=False)), **step.kwargs}
