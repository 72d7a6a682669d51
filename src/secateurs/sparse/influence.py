"""Which elements of a program's values follow its inputs, and which of them its outputs follow.

An operation makes each element of its result from some elements of what it is given; zero weights
take nothing. `spread` says which, as a map that is linear in marks on the elements. Forward from
the inputs it marks what varies: the rest is constant, whatever the input. Backward from the
outputs, its transpose marks what is needed: the rest changes no output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..groups import Graph
from ..trace.program import Instead, Node, Program, Ref
from ..trace.rules import is_pointwise, op_name, reduced_dims, spatial_dims

# Marks on the elements of the operands that vary -> marks on those of each output.
Marks: TypeAlias = dict[int, Tensor]
Spread: TypeAlias = Callable[[Marks], list[Tensor]]

RESHAPES = frozenset("view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten".split())
MOVES = frozenset(
    "permute transpose t numpy_T expand cat stack slice split split_with_sizes unsafe_split "
    "unsafe_split_with_sizes select unbind roll flip repeat unfold diagonal diagonal_copy "
    "constant_pad_nd index index_select".split()
)
PRODUCTS = frozenset("mm addmm bmm baddbmm mv dot".split())
CONVOLUTIONS = frozenset("convolution _convolution cudnn_convolution mkldnn_convolution".split())
BATCH_NORMS = frozenset(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training".split()
)
_REDUCTIONS = frozenset(
    "mean sum amax amin max min var std var_mean std_mean prod logsumexp".split()
)
_SOFTMAXES = frozenset("_softmax _log_softmax softmax log_softmax _safe_softmax".split())
_LAYER_NORMS = frozenset("native_layer_norm layer_norm _fused_rms_norm rms_norm".split())
_GROUP_NORMS = frozenset("native_group_norm group_norm".split())


class Influence:
    """What varies and what is needed in one program, for one set of weights.

    Args:
        graph: the trace of the model.
        tensors: the model's tensors by path.
        inputs: the input tensors, as the program was recorded for.

    Attributes:
        varying: value -> (its shape), true where an element may follow the inputs; a value that
            is not here is constant.
        needed: value -> (its shape), true where an output follows an element, for those in
            `varying`.
        operands: node position -> the arguments of a linear read of which some element is a
            constant other than zero.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], inputs: Sequence[Tensor]):
        self.program: Program = graph.program
        self.varying: Marks = {}
        self.needed: Marks = {}
        self.operands: dict[int, list[Any]] = {}
        self._reads = {(read.position, read.arg) for read in graph.analysis.reads}
        self._spreads: list[tuple[Node, Spread]] = []
        for ident in self.program.inputs:
            self.varying[ident] = torch.ones(
                self.program.values[ident].shape, dtype=torch.bool, device=inputs[0].device
            )
        followed = {
            position: self._followed(position, node)
            for position, node in enumerate(self.program.nodes)
        }
        self.program.replay(tensors, inputs, instead=followed)
        self._backward()

    def is_needed(self, value: int, like: Tensor) -> Tensor:
        """Where an output follows the elements of a value; everywhere if it is constant."""
        if value not in self.varying:
            return torch.ones_like(like, dtype=torch.bool)
        return self.needed.get(value, torch.zeros_like(like, dtype=torch.bool))

    def both_vary(self, position: int) -> bool:
        """Whether a node is a product of two operands that both follow the inputs."""
        node = self.program.nodes[position]
        return sum(ident in self.varying for ident in _factors(node)) > 1

    # ------------------------------------------------------------------ forward and backward
    def _followed(self, position: int, node: Node) -> Instead:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = node.op(*args, **kwargs)
            random = torch.Tag.nondeterministic_seeded in node.op.tags
            marked = {i: self.varying[i].float() for i in node.inputs if i in self.varying}
            if marked or random:
                spread = spread_of(self.program, node, args, self.varying)
                self._spreads.append((node, spread))
                for ident, marks in zip(node.outputs, spread(marked), strict=True):
                    if ident is not None:
                        found = torch.ones_like(marks) if random else marks
                        if bool((found > 0.5).any()):
                            self.varying[ident] = found > 0.5
            self._keep(position, node, args)
            return result

        return run

    def _keep(self, position: int, node: Node, args: Sequence[Any]) -> None:
        for at, arg in enumerate(node.args):
            if (position, at) in self._reads and isinstance(arg, Ref):
                known = args[at] != 0
                if arg.id in self.varying:
                    known &= ~self.varying[arg.id]
                if bool(known.any()):
                    self.operands[position] = list(args)

    def _backward(self) -> None:
        for ident in self.program.output_ids():
            if ident in self.varying:
                self.needed[ident] = torch.ones_like(self.varying[ident])
        for node, spread in reversed(self._spreads):
            wanted = [i for i in node.outputs if i is not None and i in self.needed]
            varying = [i for i in dict.fromkeys(node.inputs) if i in self.varying]
            if not wanted or not varying:
                continue
            with torch.enable_grad():
                marks = {
                    i: torch.zeros_like(self.varying[i], dtype=torch.float32, requires_grad=True)
                    for i in varying
                }
                made = dict(zip(node.outputs, spread(marks), strict=True))
                pulled = [(made[i], self.needed[i].float()) for i in wanted]
                pulled = [(out, need) for out, need in pulled if out.requires_grad]
                if not pulled:
                    continue
                found = torch.autograd.grad(
                    [out for out, _ in pulled],
                    [marks[i] for i in varying],
                    [need for _, need in pulled],
                    allow_unused=True,
                )
            for ident, grad in zip(varying, found, strict=True):
                if grad is not None:
                    before = self.needed.get(ident)
                    now = grad > 0.5
                    self.needed[ident] = now if before is None else before | now


# ---------------------------------------------------------------------- one operation
def spread_of(program: Program, node: Node, args: Sequence[Any], varying: Marks) -> Spread:
    """From which elements of its operands a node makes those of its outputs.

    Args:
        program: that the node is of.
        node: one operation.
        args: what it is given.
        varying: where its operands vary.
    """
    shapes = [() if out is None else program.values[out].shape for out in node.outputs]
    devices = [arg.device for arg in _tensors(args)]
    device = devices[0] if devices else torch.device("cpu")

    def everything(marks: Marks) -> list[Tensor]:
        total: Any = sum((m.sum() for m in marks.values()), torch.zeros((), device=device))
        return [total.expand(shape) for shape in shapes]

    rule = _rule_of(program, node, args, varying, shapes[0])
    if rule is None:
        return everything

    def spread(marks: Marks) -> list[Tensor]:
        made = rule(marks)
        if isinstance(made, Tensor):
            rest = everything(marks)[1:] if len(shapes) > 1 else []
            return [made, *rest]
        return made

    return spread


Rule: TypeAlias = Callable[[Marks], "Tensor | list[Tensor]"]


def _rule_of(
    program: Program, node: Node, args: Sequence[Any], varying: Marks, shape: tuple[int, ...]
) -> Rule | None:
    """How marks pass through a node; None where any element may follow from any."""
    name = op_name(node.op)
    if name in PRODUCTS or name in CONVOLUTIONS or name == "mul":
        return _product(node, args, varying, shape)
    first = node.inputs[0] if node.inputs else -1
    rank = len(program.values[first].shape) if node.inputs else 0
    several = any(ident in varying for ident in node.inputs if ident != first)
    if name in RESHAPES:
        return lambda marks: marks[first].reshape(shape)
    if name in MOVES:
        return None if _by_varying_index(node, varying) else _moved(node, args)
    if is_pointwise(node.op) or (name in _REDUCTIONS and len(node.inputs) > 1):
        return lambda marks: reduce(torch.add, (m.expand(shape) for m in marks.values()))
    if several:
        return None
    if name in BATCH_NORMS and ("no_training" in name or not args[5]):
        return _batch_norm(args[1], first, rank)
    if name in _REDUCTIONS:
        dims = reduced_dims(node, rank)
        return lambda marks: [marks[first].sum(dims).reshape(shape) for _ in node.outputs]
    if name in _GROUP_NORMS:
        groups = (shape[0], int(node.args[6]), -1)

        def within_groups(marks: Marks) -> Tensor:
            lines = marks[first].reshape(groups)
            return lines.sum(2, keepdim=True).expand_as(lines).reshape(shape)

        return within_groups
    mixed = _mixed(node, rank)
    if mixed:
        return lambda marks: marks[first].sum(mixed, keepdim=True).expand(shape)
    return None


def _factors(node: Node) -> list[int]:
    """The two values that a product multiplies."""
    at = 1 if op_name(node.op) in ("addmm", "baddbmm") else 0
    return [arg.id for arg in node.args[at : at + 2] if isinstance(arg, Ref)]


def _product(node: Node, args: Sequence[Any], varying: Marks, shape: tuple[int, ...]) -> Rule:
    """A product passes on what varies in one operand where the other is not zero."""
    name = op_name(node.op)
    at = 1 if name in ("addmm", "baddbmm") else 0
    refs, given = node.args[at : at + 2], args[at : at + 2]
    loud = [_loud(ref, value, varying) for ref, value in zip(refs, given, strict=True)]
    added = [a.id for i, a in enumerate(node.args) if isinstance(a, Ref) and i not in (at, at + 1)]

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        if name in CONVOLUTIONS:
            made: Tensor = node.op(a, b, None, *args[3:])
            return made
        return a * b if name == "mul" else a @ b

    def rule(marks: Marks) -> Tensor:
        out = torch.zeros(shape, device=_tensors(given)[0].device)
        for side, ref in enumerate(refs):
            if isinstance(ref, Ref) and ref.id in marks:
                pair = [marks[ref.id], loud[1 - side].float()]
                out = out + multiply(*(pair if side == 0 else pair[::-1]))
        for ident in added:
            if ident in marks:
                bias = marks[ident]
                out = out + (_along(bias, 1, len(shape)) if name in CONVOLUTIONS else bias)
        return out

    return rule


def _loud(ref: Any, value: Any, varying: Marks) -> Tensor:
    """Where an operand is anything but a constant zero."""
    found: Tensor = torch.as_tensor(value) != 0
    if isinstance(ref, Ref) and ref.id in varying:
        found = found | varying[ref.id]
    return found


def _along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """A vector as a tensor of this rank that holds it along one dimension."""
    return vector.reshape([-1 if d == dim else 1 for d in range(rank)])


def _batch_norm(scale: Tensor | None, first: int, rank: int) -> Rule:
    """Each element is scaled by itself, by zero where the channel's scale is."""

    def rule(marks: Marks) -> Tensor:
        marked = marks[first]
        return marked if scale is None else marked * _along((scale != 0).float(), 1, rank)

    return rule


def _by_varying_index(node: Node, varying: Marks) -> bool:
    if op_name(node.op) not in ("index", "index_select"):
        return False
    return any(ident in varying for ident in node.inputs[1:])


def _moved(node: Node, args: Sequence[Any]) -> Rule:
    """Marks move as the elements do."""
    movable = 1 if op_name(node.op) in ("index", "index_select") else len(args)

    def marked(ref: Any, arg: Any, marks: Marks) -> Any:
        if isinstance(ref, Ref):
            return marks.get(ref.id, torch.zeros(arg.shape, device=arg.device))
        if isinstance(ref, list):
            return [marked(r, a, marks) for r, a in zip(ref, arg, strict=True)]
        return arg

    rest = list(args[movable:])
    if op_name(node.op) == "constant_pad_nd":
        args = [args[0], args[1], 0]

    def rule(marks: Marks) -> Tensor | list[Tensor]:
        moved = [marked(r, a, marks) for r, a in zip(node.args, args[:movable], strict=False)]
        made = node.op(*moved, *rest, **node.kwargs)
        return list(made) if node.multiple else made

    return rule


def _mixed(node: Node, rank: int) -> list[int]:
    """The dimensions along which every element of the result follows from all that is given."""
    name = op_name(node.op)
    if name in _SOFTMAXES or name.startswith(("cumsum", "cumprod", "logcumsum")):
        return [node.args[1] % rank]
    if name in _LAYER_NORMS:
        return list(range(rank - len(node.args[1]), rank))
    if name in BATCH_NORMS:  # statistics of the batch
        return [d for d in range(rank) if d != 1]
    space = spatial_dims(node.op)
    return list(range(rank - space, rank))


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return [arg for arg in flat if isinstance(arg, Tensor)]
