"""The program of a cut network: what was recorded of the uncut one, with other sizes.

Numbers that the code computed are in the recording as they were, so that nothing is left to make
up for: what the program gives is what the gated network gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import MendError
from .analyse import Analysis
from .program import Instead, Node, Program, Run, is_plain
from .shadow import META, Shadow
from .sizes import Cut, resized_args


def unmended(program: Program, why: str) -> str:
    """Why a cut cannot be mended in the model, and what else can be done."""
    hint = "; sc.trace(model, inputs, replay=True) serves such a cut as a static program"
    return why if program.looks or why.endswith(hint) else why + hint


def shrunk(analysis: Analysis, cut: Cut) -> Program:
    """The recorded program with every size that it states as it is after a cut."""
    program = analysis.program
    nodes = [
        replace(node, args=tuple(resized_args(analysis, node, cut)), call=None)
        for node in program.nodes
    ]
    return replace(program, nodes=nodes, aside=Run(), whole=[], attributes={})


def check(
    analysis: Analysis, cut: Cut, small: Program, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Run the program of a cut network on shapes.

    Args:
        analysis: of the uncut network.
        cut: what goes.
        small: from `shrunk`.
        shapes: tensor path -> shape of every tensor after the cut.

    Raises:
        MendError: an operation fixes a size that the cut changes.
    """
    program, shadow = analysis.program, Shadow(META)
    for leaf in pytree.tree_leaves(program.outputs):
        if not is_plain(leaf):
            kind = type(leaf).__name__
            raise MendError(f"a static program cannot serve this cut: the model returns a {kind}")
    tensors = {name: _meta(shapes[name], program, i) for name, i in program.tensors.items()}
    inputs = [_meta(program.values[i].shape, program, i) for i in program.inputs]
    steps = {
        position: _checked(node, analysis, cut, shadow) for position, node in enumerate(small.nodes)
    }
    small.replay(tensors, inputs, instead=steps)


def _meta(shape: tuple[int, ...], program: Program, ident: int) -> torch.Tensor:
    return torch.empty(shape, dtype=program.values[ident].dtype, device=META)


def _checked(node: Node, analysis: Analysis, cut: Cut, shadow: Shadow) -> Instead:
    """The node on shapes, whose result must have those that the cut gives it."""
    run: Callable[..., Any] = node.op
    values, axes = analysis.program.values, analysis.axes

    def step(*args: Any, **kwargs: Any) -> Any:
        found = [a for arg in args for a in (arg if isinstance(arg, list) else [arg])]
        tensors = [a for a in found if isinstance(a, torch.Tensor)]
        try:
            result = shadow.run(run, args, kwargs, tensors)
        except Exception as error:
            raise _refusal(node, str(error).partition("\n")[0]) from error
        results = result if node.multiple else (result,)
        for ident, out in zip(node.outputs, results, strict=True):
            if ident is not None and values[ident].live:
                wanted = tuple(cut.size(axis) for axis in axes[ident])
                if tuple(out.shape) != wanted:
                    raise _refusal(node, f"it gives {tuple(out.shape)}, not {wanted}")
        return result

    return step


def _refusal(node: Node, why: str) -> MendError:
    where = f" in {node.module}" if node.module else ""
    return MendError(f"a static program cannot serve this cut: {node.name}{where}: {why}")
