"""Layers that compute with their non-zero weights alone, where that is measured to be faster."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import LawError, TraceError
from ..gates import deviation
from ..latency import latency
from ..trace.model import as_call, modules_of
from ..trace.modes import evaluating

M = TypeVar("M", bound=nn.Module)

_CLOSE = 1e-4  # of the largest output: float32 sums in another order
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # of the weights of their layers


def to_csr(model: M, example_inputs: Any, *, gain: float = 1.2) -> M:
    """The model with its sparse layers in compressed rows (CSR), where that is faster here.

    Every `nn.Linear` and ungrouped `nn.Conv2d` is timed against its CSR form, in turns, on what it
    gets when the model runs on these inputs, with this number of threads; it is replaced if its
    CSR form is faster. What wins at one batch size may lose at another: give the inputs that count.
    Left dense is what has no CSR form here, such as a layer of 16-bit floats, and what lies in an
    `nn.MultiheadAttention` or `nn.TransformerEncoderLayer`, which read their layers' weights.
    The result is for inference, and is not saved: save the dense one, with `sparse=True`.

    Args:
        model: with weights that are zero; it is not changed.
        example_inputs: as for `trace`, of the batch size that is wanted.
        gain: how many times faster a layer must be to be replaced; 0 replaces all.

    Returns:
        A copy; the layers replaced print how much of them is left and how much faster they were.

    Raises:
        TraceError: the model does not run on these inputs.
        LawError: with the layers replaced it runs no more, or gives other outputs: its code
            reads a weight of theirs by itself.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(900, 900))
    >>> _ = net[0].weight.data.masked_fill_(torch.rand(900, 900) > 0.01, 0)
    >>> fast = sc.to_csr(net, torch.randn(64, 900))
    >>> torch.allclose(fast(torch.ones(2, 900)), net(torch.ones(2, 900)), atol=1e-5)
    True
    """
    model = copy.deepcopy(model)
    wanted, seen = _run(model, example_inputs)
    swapped: dict[int, nn.Module] = {}
    for layer, inputs in seen.values():
        form = _form(layer, inputs)
        if form is None:
            continue
        old, new = latency([layer, form], (inputs,), rounds=5, seconds=0.01)
        form.faster = old.median / new.median
        if form.faster > gain:
            swapped[id(layer)] = form
    if id(model) in swapped:
        raise LawError("the model is one layer; put it in an nn.Sequential")
    for module in list(modules_of(model).values()):
        for name, child in module._modules.items():
            if id(child) in swapped:
                module._modules[name] = swapped[id(child)]
    if swapped:
        _check(model, example_inputs, wanted)
    return model


def _run(
    model: nn.Module, example_inputs: Any
) -> tuple[list[Tensor], dict[int, tuple[Any, Tensor]]]:
    """The outputs, and each layer that could be replaced with what it got."""
    seen: dict[int, tuple[Any, Tensor]] = {}

    def see(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen[id(layer)] = layer, (args[0] if args else kwargs["input"]).detach()

    inside = {child for m in model.modules() if isinstance(m, _READERS) for child in m.modules()}
    layers = [m for m in model.modules() if _fits(m) and m not in inside]
    handles = [m.register_forward_pre_hook(see, with_kwargs=True) for m in layers]
    try:
        return _outputs(model, example_inputs), seen
    except Exception as error:
        raise TraceError(f"the model does not run on these inputs: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _fits(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks:
        return False  # such as weight_norm, which makes the weight anew
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"
    return type(module) is nn.Linear


def _form(layer: Any, inputs: Tensor) -> _Rows | None:
    """The layer in compressed rows, if it runs on these inputs."""
    try:
        form = _Linear(layer) if isinstance(layer, nn.Linear) else _Conv2d(layer)
        with torch.no_grad():
            form(inputs)
    except RuntimeError:  # such as of a dtype without a sparse product
        return None
    return form


def _outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    args, kwargs = as_call(example_inputs)
    with torch.no_grad(), evaluating(model):
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _check(model: nn.Module, example_inputs: Any, wanted: list[Tensor]) -> None:
    try:
        _, off = deviation(wanted, _outputs(model, example_inputs))
    except Exception as error:
        raise LawError(
            f"the model does not run with CSR layers ({error}); its code reads weights by itself"
        ) from error
    if not off <= _CLOSE:
        raise LawError(f"with CSR layers the outputs are off by {off:.1e} of the largest")


# ---------------------------------------------------------------------- the layers
class _Rows(nn.Module):
    """Weights in compressed rows, (outputs, all that an output reads), and the biases.

    Attributes:
        faster: how many times faster than the dense layer it was.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        matrix = layer.weight.detach().flatten(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            self.register_buffer("weight", matrix.to_sparse_csr())
        bias = matrix.new_zeros(len(matrix)) if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)
        self.faster = 1.0
        self.training = layer.training

    def columns(self, x: Tensor) -> Tensor:
        """Outputs (outputs, n) of what is read, (read, n)."""
        return torch.addmm(self.bias[:, None], self.weight, x)

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        kept = self.weight.values().numel() / (rows * columns)
        return f"{columns}, {rows}, kept={kept:.1%}, faster={self.faster:.1f}"


class _Linear(_Rows):
    def forward(self, input: Tensor) -> Tensor:
        flat = input.reshape(-1, input.shape[-1])
        out = self.columns(flat.t()).t()
        return out.reshape(*input.shape[:-1], len(self.bias)).contiguous()


class _Conv2d(_Rows):
    """A convolution as one product with all its patches side by side."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer)
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
        self._kernel = layer.kernel_size, layer.dilation, padding, layer.stride

    def forward(self, input: Tensor) -> Tensor:
        images = input if input.dim() == 4 else input[None]
        patches = F.unfold(images, *self._kernel).transpose(0, 1)
        channels, sizes = len(self.bias), map(self._size, (0, 1), images.shape[2:])
        out = self.columns(patches.flatten(1)).reshape(channels, *patches.shape[1:])
        out = out.transpose(0, 1).reshape(len(images), channels, *sizes).contiguous()
        return out if input.dim() == 4 else out[0]

    def _size(self, dim: int, size: int) -> int:
        kernel, dilation, padding, stride = (pair[dim] for pair in self._kernel)
        return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
