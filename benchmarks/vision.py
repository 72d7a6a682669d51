"""torchvision, made importable beside a CPU build of torch."""

from __future__ import annotations

import torch


def torchvision_models():
    """torchvision.models; its compiled operators are declared where they are missing."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_models.library = library  # kept alive with the function
        import torchvision
    return torchvision.models
