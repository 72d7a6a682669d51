"""How a model is set to run: in which mode, and by which kernels."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while open; every module's own mode and every buffer's content afterwards.

    So are the lists that recurrent layers hold their weights in too, which `functional_call` leaves
    with what it was given.
    """
    buffers = [(b, b._version, b.clone()) for b in model.buffers()]
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    held = [(m, list(m._flat_weights), list(m._flat_weight_refs)) for m in layers]
    try:
        with in_mode(model.modules(), training=False):
            yield
    finally:
        for buffer, version, before in buffers:
            if buffer._version != version:
                buffer.data.copy_(before)
        for layer, weights, references in held:
            layer._flat_weights, layer._flat_weight_refs = weights, references


@contextlib.contextmanager
def in_mode(modules: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    """These modules set to train or not while open; their modes and buffers afterwards."""
    modules = list(modules)
    modes = [module for module in modules if module.training != training]
    buffers = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
    try:
        for module in modes:
            module.training = training
        yield
    finally:
        for module in modes:
            module.training = not training
        for held, before in buffers:
            held.update(before)


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # its own context manager warns of other settings
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    """What was given to torch.compile runs as it is written."""
    if "torch._dynamo" not in sys.modules:  # then nothing was, and to ask takes a second
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """What einops keeps of earlier calls is not used: numbers that have no provenance."""
    einops: Any = sys.modules.get("einops.einops")
    kept = getattr(einops, "_reconstruct_from_shape", None)
    if kept is None:
        yield
        return
    einops._reconstruct_from_shape = getattr(kept, "__wrapped__", kept)
    try:
        yield
    finally:
        einops._reconstruct_from_shape = kept


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """No fused fast paths, so that what runs is made of operations that can be followed."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            _without_onednn(),
            torch.backends.cudnn.flags(enabled=False),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """While open, what a model's code says is what runs: nothing is compiled, kept, or fused."""
    with _uncompiled(), _uncached(), _plain_kernels():
        yield
