"""The short cuts on shapes against PyTorch's own kernels, on real tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateurs.trace.shadow import Shadow

aten = torch.ops.aten
IMAGE, TOKENS = torch.randn(2, 6, 4, 4), torch.randn(2, 5, 3, 4)
CHANNELS = [torch.rand(6) for _ in range(4)]

# an operation, and what it is called with
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a number times a permuted tensor": (aten.mul.Scalar, (TOKENS.permute(0, 2, 1, 3), 0.5)),
    "a number times every second index": (aten.mul.Scalar, (TOKENS[..., ::2], 0.5)),
    "an activation of channels last": (aten.gelu, (IMAGE.permute(0, 3, 1, 2),)),
    "a sum that broadcasts": (aten.add.Tensor, (TOKENS, torch.randn(4))),
    "batch norm": (aten.native_batch_norm, (IMAGE, *CHANNELS, False, 0.1, 1e-5)),
    "batch norm in training": (aten.native_batch_norm, (IMAGE, *CHANNELS, True, 0.1, 1e-5)),
    "batch norm of halves": (
        aten.native_batch_norm, (IMAGE.bfloat16(), *CHANNELS, True, 0.1, 1e-5)
    ),
    "layer norm": (aten.native_layer_norm, (TOKENS, [4], None, None, 1e-5)),
    "layer norm of channels last": (
        aten.native_layer_norm, (IMAGE.permute(0, 2, 3, 1), [6], None, None, 1e-5)
    ),
    "group norm": (aten.native_group_norm, (IMAGE, *CHANNELS[:2], 2, 6, 16, 3, 1e-5)),
    "a concatenation": (aten.cat, ([IMAGE, IMAGE[:, :2].contiguous()], 1)),
    "a concatenation along the last axis": (aten.cat, ([TOKENS, TOKENS], -1)),
    "convolution": (
        aten.convolution,
        (IMAGE, torch.randn(8, 3, 3, 3), None, [2, 1], [1], [1, 1], False, [0], 2),
    ),
    "mean": (aten.mean.dim, (IMAGE, [2, 3], True)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_shadow_has_the_layout_of_the_real_result(name: str) -> None:
    func, args = CASES[name]
    func = getattr(func, "default", func)
    shadow = Shadow(torch.device("cpu"))
    wanted = func(*args)
    twins = pytree.tree_map_only(Tensor, shadow.twin, args)
    tensors = [leaf for leaf in pytree.tree_leaves(twins) if isinstance(leaf, Tensor)]
    found = shadow.run(func, twins, {}, tensors)
    for real, made in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True):
        assert made.is_meta
        assert (made.shape, made.dtype) == (real.shape, real.dtype)
        assert made.stride() == real.stride() or made.numel() == 0
