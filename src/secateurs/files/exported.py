"""What every export shares: inputs of any batch size, one traced program, one check of outputs."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import ExportError
from ..gates import deviation, tensors_of
from ..trace.model import as_call
from ..trace.modes import evaluating

BatchDims: TypeAlias = int | Sequence[int | None] | Mapping[str, int | None]

# The largest relative error of an output that another order of the same sums explains.
TOLERANCE = {torch.float64: 1e-9, torch.float16: 1e-2, torch.bfloat16: 1e-1}
TOLERANCE_ELSE = 1e-4
# Whose lines say nothing to a user whose model cannot be exported.
NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back and found to give the outputs of the model.

    Attributes:
        path: where it is.
        format: 'onnx' or 'pt2'.
        opset: the version of the ONNX operators in it; None for `.pt2`.
        batches: the batch sizes that it was run on.
        max_relative_error: the largest difference of any output at any of them, over the largest
            absolute value of that output.
        size: bytes.
    """

    path: Path
    format: str
    opset: int | None
    batches: tuple[int, ...]
    max_relative_error: float
    size: int

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset else ""
        *most, last = map(str, self.batches)
        batches = f"{', '.join(most)} and {last}" if most else last
        return (
            f"{self.path}: {self.format}{opset}, {self.size:,} bytes; outputs equal at batch "
            f"{batches} (largest relative difference {self.max_relative_error:.1e})"
        )


class Inputs:
    """Example inputs, and which dim of each tensor in them counts the examples.

    Args:
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        batch_dims: that dim for every tensor; or one for each argument, in the same form as the
            arguments, None for an argument that has no batch.

    Raises:
        ExportError: nothing has a batch, or the tensors disagree about its size.
    """

    def __init__(self, example_inputs: Any, batch_dims: BatchDims = 0) -> None:
        args, kwargs = as_call(example_inputs)
        named: dict[Any, Any] = {**kwargs, **dict[Any, Any](enumerate(args))}
        self._arguments = {key: pytree.tree_flatten(value) for key, value in named.items()}
        self._dims = {key: _dim_of(key, batch_dims) for key in named}
        self._keyword = bool(kwargs)
        self.size = self._agreed()

    def of(self, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) for a batch of `count`, made of the examples at hand.

        Row i has the values of the example i mod n, moved i places on, so that no two rows are
        alike and every value is one that the model is known to take.
        """
        return self._call(lambda tensor, dim: _rows(tensor, dim, count))

    def shapes(self, batch: Any) -> Any:
        """The same nest with {batch dim: `batch`} for every tensor, as `torch.export` takes it."""
        args, kwargs = self._call(lambda _, dim: {dim: batch}, lambda _: None)
        return kwargs or args

    def _agreed(self) -> int:
        sizes = {
            f"input {key}": leaf.shape[dim]
            for key, (leaves, _) in self._arguments.items()
            for leaf in leaves
            if (dim := self._batched(key, leaf)) is not None
        }
        if not sizes:
            raise ExportError("no input has a batch; say which dim of which counts the examples")
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise ExportError(
                f"the inputs disagree about the size of the batch: {told}; give batch_dims, one "
                "for each argument, None for an argument without a batch"
            )
        size = next(iter(sizes.values()))
        if size < 1:
            raise ExportError("the example inputs hold no example; give at least one")
        return size

    def _batched(self, key: Any, leaf: Any) -> int | None:
        """The batch dim of a leaf; none for what is no tensor, or has no such dim."""
        dim = self._dims[key]
        if dim is None or not isinstance(leaf, Tensor) or not -leaf.dim() <= dim < leaf.dim():
            return None
        return dim % leaf.dim()

    def _call(
        self, change: Callable[[Tensor, int], Any], other: Callable[[Any], Any] = lambda leaf: leaf
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        out = {}
        for key, (leaves, spec) in self._arguments.items():
            dims = [self._batched(key, leaf) for leaf in leaves]
            changed = [
                other(leaf) if dim is None else change(leaf, dim)
                for leaf, dim in zip(leaves, dims, strict=True)
            ]
            out[key] = pytree.tree_unflatten(changed, spec)
        return ((), out) if self._keyword else (tuple(out.values()), {})


def _dim_of(key: Any, batch_dims: BatchDims) -> int | None:
    if isinstance(batch_dims, int):
        return batch_dims
    try:
        return batch_dims[key]
    except (IndexError, KeyError, TypeError):
        raise ExportError(
            f"batch_dims says nothing of input {key}; give one dim, or one for each argument in "
            "the form of the example inputs"
        ) from None


def _rows(tensor: Tensor, dim: int, count: int) -> Tensor:
    examples = [example.contiguous() for example in tensor.unbind(dim)]
    rows = [examples[i % len(examples)] for i in range(count)]
    return torch.stack([row.flatten().roll(i).view_as(row) for i, row in enumerate(rows)], dim)


def capture(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model in eval mode as one program, for a batch of any size.

    A batch of one would be taken for a constant, so that the program is made on two or more.

    Raises:
        ExportError: the model does not run, or cannot be followed, or fixes the batch size.
    """
    args, kwargs = inputs.of(max(2, inputs.size))
    run(model, args, kwargs)
    shapes = inputs.shapes(torch.export.Dim("batch"))
    try:
        with quiet(), torch.no_grad(), evaluating(model):
            return torch.export.export(
                model, args, kwargs or None, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise ExportError(
            f"torch.export cannot follow {type(model).__name__}: {first_words(error)}; make what "
            "the model does depend on shapes alone (no Python branch on a tensor's values, no "
            "fixed batch size), or save it with sc.save"
        ) from error


def run(model: Callable[..., Any], args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a model returns, on the CPU; a module runs in eval mode.

    Raises:
        ExportError: it does not run, or returns no tensor.
    """
    try:
        with torch.no_grad():
            if isinstance(model, nn.Module):
                with evaluating(model):
                    found = tensors_of(model(*args, **kwargs))
            else:
                found = tensors_of(model(*args, **kwargs))
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of((args, kwargs)))
        name = type(model).__name__
        raise ExportError(f"{name} does not run on {shapes}: {first_words(error)}") from error
    if not found:
        raise ExportError(f"{type(model).__name__} returns no tensor, so there is nothing to write")
    return [tensor.cpu() for tensor in found]


def check(
    model: nn.Module,
    written: Callable[..., Any],
    inputs: Inputs,
    batches: Sequence[int],
) -> tuple[tuple[int, ...], float]:
    """Compare what was written with the model, at these batch sizes and the example's.

    Returns:
        The batch sizes, and the largest relative error.

    Raises:
        ExportError: an output differs.
    """
    sizes, worst = tuple(sorted({*batches, inputs.size})), 0.0
    for size in sizes:
        args, kwargs = inputs.of(size)
        wanted = run(model, args, kwargs)
        given = run(written, *pytree.tree_map_only(Tensor, Tensor.cpu, (args, kwargs)))
        shapes = [[tuple(t.shape) for t in tensors] for tensors in (wanted, given)]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"at batch {size} the exported network returns shapes {shapes[1]}, not "
                f"{shapes[0]}; the model's shapes must follow from its input's, for every batch"
            )
        error = deviation(wanted, given)[1]
        tolerance = min(TOLERANCE.get(t.dtype, TOLERANCE_ELSE) for t in wanted)
        if not error <= tolerance:
            raise ExportError(
                f"at batch {size} the exported network differs from the model by {error:.1e} of "
                f"the largest output (allowed: {tolerance:.0e}); does the model draw at random, "
                "or keep something from one call to the next?"
            )
        worst = max(worst, error)
    return sizes, worst


def first_words(error: BaseException) -> str:
    """What an exporter's error comes down to: its first cause in a line, and the user's line."""
    where = ""
    while True:
        for frame in traceback.extract_tb(error.__traceback__):
            if not frame.filename.startswith((*NOT_THEIRS, "<")):
                where = f" ({Path(frame.filename).name}, line {frame.lineno})"
        if error.__cause__ is None:
            break
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("For more information")]
    short = " ".join(lines[:2])
    return f"{type(error).__name__}: {short[:300]}{' …' if len(short) > 300 else ''}{where}"


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings: those of the exporters are about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
