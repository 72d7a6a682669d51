"""torchvision, made importable beside a CPU build of torch, and networks built quickly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn


def torchvision_models():
    """torchvision.models; its compiled operators are declared where they are missing."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for signature in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
            "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
        ):
            library.define(signature)
        torchvision_models.library = library  # kept alive with the function
        import torchvision

        _in_python(library)
    return torchvision.models


def _in_python(library: torch.library.Library) -> None:
    """Give the operators of the detectors a body: slow, but with the same results."""
    from torchvision import extension
    from torchvision.ops import boxes
    from torchvision.ops.roi_align import _roi_align as roi_align

    def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        order = scores.argsort(descending=True)
        overlaps = (boxes.box_iou(dets[order], dets[order]) > iou_threshold).numpy()
        kept, gone = [], np.zeros(len(order), dtype=bool)
        for i, over in enumerate(overlaps):
            if not gone[i]:
                kept.append(i)
                gone |= over
        return order[kept]

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[2:]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rois = ctx.saved_tensors
        _, pull = torch.func.vjp(lambda x: roi_align(x, rois, *ctx.rest), x)
        return (*pull(gradient), None, *[None] * len(ctx.rest))

    library.impl("nms", nms, "CPU")
    library.impl("roi_align", roi_align, "CPU")
    torch.library.register_autograd(
        "torchvision::roi_align", backward, setup_context=remember, lib=library
    )
    extension._has_ops = lambda: True
    for module in (extension, boxes):
        module._assert_has_ops = lambda: None


@contextlib.contextmanager
def no_init() -> Iterator[None]:
    """Weights stay as allocated: they are drawn anew afterwards, which is faster."""
    names = [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("_")]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *_, **__: tensor))
        yield
