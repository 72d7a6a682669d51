"""Derivatives of the mean loss by the weights, over batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Loss, Objective, check_loss, loss_of, to_device, total_loss
from ..errors import ConfigError, DataError, DerivativeError, nearest
from ..exact.changes import count_examples
from ..trace.modes import evaluating


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of these paths; a shared one has several.

    Raises:
        ConfigError: the model has no parameter of a name.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    names = list(names)
    for name in names:
        if name not in known:
            raise ConfigError(f"the model has no parameter {name!r}{nearest(name, known)}")
    return {name: known[name] for name in names}


def mean_gradient(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """The gradient of the mean loss over all examples of the batches, in eval mode.

    Args:
        model, names, batches, loss, objective: see `Saliency.of`.

    Returns:
        Path -> the gradient; zeros where the loss does not depend on the parameter.

    Raises:
        DataError: no data, or a loss of another shape.
        DerivativeError: the loss cannot be differentiated.
        NotFiniteError: the loss is NaN or infinite.

    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> data = [(torch.tensor([[1.0], [2.0]]), None), (torch.tensor([[6.0]]), None)]
    >>> mean_gradient(net, ["weight"], data, loss=lambda output, _: output.sum(1))
    {'weight': tensor([[3.]])}
    """
    check_loss(loss, objective)
    own = parameters_of(model, names)
    total = {name: torch.zeros_like(p) for name, p in own.items()}
    seen = 0
    with evaluating(model), differentiable(own.values()), torch.enable_grad():
        for batch, examples in examples_of(model, batches):
            value, _ = total_loss(loss_of(model, batch, loss, objective), examples)
            if not value.requires_grad:
                raise DerivativeError("the loss does not depend on the weights, or is detached")
            slopes = torch.autograd.grad(value, list(own.values()), materialize_grads=True)
            for name, slope in zip(own, slopes, strict=True):
                total[name] += slope
            seen += examples
    return {name: found / seen for name, found in total.items()}


def examples_of(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """Every batch on the model's device, with the number of its examples.

    Raises:
        DataError: there is none, or one holds no example.
    """
    device = next(iter(model.parameters()), torch.zeros(0)).device
    empty = True
    for batch in batches:
        empty = False
        yield to_device(batch, device), count_examples(batch)
    if empty:
        raise DataError("the data is empty: no batch was given to take derivatives on")


@contextmanager
def differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """While open, these parameters take part in derivatives, frozen ones too."""
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
