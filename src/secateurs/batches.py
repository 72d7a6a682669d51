"""Batches of data: where they are, and how a model and a loss are called with one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import DataError, NotFiniteError
from .trace.model import as_call

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Objective: TypeAlias = Callable[[Any, Any], Tensor]


def check_loss(loss: Loss | None, objective: Objective | None) -> None:
    """Exactly one of the two must be given, and be a function.

    Raises:
        DataError: none or both are, or it is something else.
    """
    if (loss is None) == (objective is None):
        raise DataError("pass loss(output, target) or objective(model, batch), one of the two")
    given = loss if objective is None else objective
    if not callable(given):
        raise DataError(f"a loss is a function, such as torch.nn.CrossEntropyLoss(), not {given!r}")


def loss_of(model: Any, batch: Any, loss: Loss | None, objective: Objective | None) -> Tensor:
    """The loss of a batch: one value per example, or a scalar.

    The input of a pair is whatever `trace` takes: a tensor, a tuple of positional arguments, or a
    mapping of keyword arguments.

    Raises:
        DataError: the batch is not a pair, where `loss` needs one.
    """
    if objective is not None:
        return objective(model, batch)
    if loss is None or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(
            "loss(output, target) needs batches that are pairs (input, target); "
            "pass objective(model, batch) for any other"
        )
    args, kwargs = as_call(batch[0])
    return loss(model(*args, **kwargs), batch[1])


def total_loss(value: Any, examples: int) -> tuple[Tensor, str]:
    """The sum over examples of a loss, and how it was read.

    Raises:
        DataError: it is no tensor, or of another shape.
        NotFiniteError: it is NaN or infinite.
    """
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


def example_seeds(batch: Any, examples: int, seed: int) -> list[int]:
    """A seed for each example, from what the batch holds of it: the same in any other batch.

    Args:
        batch: in any form; its tensors of `examples` rows hold one row for each.
        examples: how many there are.
        seed: draws other seeds for the same examples.

    >>> x = torch.arange(6).reshape(3, 2)
    >>> example_seeds((x, None), 3, 0)[2:] == example_seeds((x[2:], None), 1, 0)
    True
    """
    digests = [hashlib.blake2b(str(seed).encode(), digest_size=8) for _ in range(examples)]
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == examples:
            rows = leaf.detach().cpu()[:, None].flatten(1).contiguous().view(torch.uint8)
            for digest, row in zip(digests, rows.numpy(), strict=True):
                digest.update(row)
    return [int.from_bytes(digest.digest(), "big") for digest in digests]


def to_device(data: Any, device: torch.device) -> Any:
    """The same data with its tensors on a device."""
    if isinstance(data, Mapping) and not isinstance(data, dict):
        data = dict(data)
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), data)
