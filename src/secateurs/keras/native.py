"""A function of TensorFlow or JAX within a derivative that torch takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import torch
from torch.autograd.function import once_differentiable

from .module import as_tensor

Rows = Callable[[list[Any]], Any]


class Native(torch.autograd.Function):
    """rows(outputs) -> (examples,), computed with its gradient by the backend of Keras.

    What the network does is replayed with torch on any backend; its loss runs where it is at home.
    It has no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, rows: Rows, *outputs: torch.Tensor) -> torch.Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*outputs)
        return as_tensor(rows(_tensors(outputs)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: torch.Tensor) -> Any:
        outputs = _tensors(ctx.saved_tensors)
        [factor] = _tensors([weights])
        found = _DERIVATIVES[keras.backend.backend()](ctx.rows, outputs, factor)
        return None, *(
            torch.zeros_like(own) if gradient is None else as_tensor(gradient).to(own.dtype)
            for own, gradient in zip(ctx.saved_tensors, found, strict=True)
        )


def _tensors(values: Any) -> list[Any]:
    return [keras.ops.convert_to_tensor(value.detach().cpu().numpy()) for value in values]


def _by_tensorflow(rows: Rows, outputs: list[Any], factor: Any) -> Any:
    tensorflow = importlib.import_module("tensorflow")
    with tensorflow.GradientTape() as tape:
        tape.watch(outputs)
        total = keras.ops.sum(rows(outputs) * factor)
    return tape.gradient(total, outputs)


def _by_jax(rows: Rows, outputs: list[Any], factor: Any) -> Any:
    jax = importlib.import_module("jax")
    [found] = jax.vjp(rows, outputs)[1](factor)
    return found


_DERIVATIVES = {"tensorflow": _by_tensorflow, "jax": _by_jax}
