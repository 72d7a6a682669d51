"""A function of TensorFlow or JAX within a derivative that torch takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import keras
import torch
from torch.autograd.function import once_differentiable

from .module import as_tensor

Rows = Callable[[list[Any]], Any]
Total = Callable[[list[Any]], Any]


class Native(torch.autograd.Function):
    """rows(outputs) -> (examples,), computed and twice differentiated by the backend of Keras.

    What the network does is replayed with torch on any backend; its loss runs where it is at home.
    """

    @staticmethod
    def forward(ctx: Any, rows: Rows, *outputs: torch.Tensor) -> torch.Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*outputs)
        return as_tensor(rows(_natives(outputs)))

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> Any:
        return None, *_Slopes.apply(ctx.rows, factor, *ctx.saved_tensors)


class _Slopes(torch.autograd.Function):
    """The derivative of Σ factor · rows(outputs) by the outputs."""

    @staticmethod
    def forward(
        ctx: Any, rows: Rows, factor: torch.Tensor, *outputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.rows = rows
        ctx.save_for_backward(factor, *outputs)
        along, *values = _natives([factor, *outputs])
        return _torches(_slopes(rows, along, values), outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *along: torch.Tensor) -> Any:
        vectors = _natives(along)

        def total(given: list[Any]) -> Any:
            factor, *outputs = given
            slopes = zip(_slopes(ctx.rows, factor, outputs), vectors, strict=True)
            terms = [keras.ops.sum(s * v) for s, v in slopes if s is not None]
            return sum(terms, keras.ops.sum(factor) * 0)

        saved = ctx.saved_tensors
        return None, *_torches(_gradient(total, _natives(saved)), saved)


def _slopes(rows: Rows, factor: Any, outputs: list[Any]) -> list[Any]:
    """The same in tensors of the backend; None where the loss does not depend on an output."""
    return _gradient(lambda own: keras.ops.sum(rows(own) * factor), outputs)


def _natives(values: Iterable[torch.Tensor]) -> list[Any]:
    return [keras.ops.convert_to_tensor(value.detach().cpu().numpy()) for value in values]


def _torches(found: Iterable[Any], like: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Derivatives as torch tensors, zeros where there is none."""
    return tuple(
        torch.zeros_like(own) if value is None else as_tensor(value).to(own.dtype)
        for value, own in zip(found, like, strict=True)
    )


def _gradient(total: Total, given: list[Any]) -> list[Any]:
    """∂total/∂given, by the backend that runs."""
    return _GRADIENTS[keras.backend.backend()](total, given)


def _by_tensorflow(total: Total, given: list[Any]) -> Any:
    tensorflow = importlib.import_module("tensorflow")
    with tensorflow.GradientTape() as tape:
        tape.watch(given)
        value = total(given)
    return tape.gradient(value, given)


def _by_jax(total: Total, given: list[Any]) -> Any:
    return importlib.import_module("jax").grad(total)(given)


_GRADIENTS = {"tensorflow": _by_tensorflow, "jax": _by_jax}
