"""The networks of torchvision that the law is held on, built quickly."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.vision import no_init, torchvision_models
from tests.support import randomise
from torch import Tensor, nn

ZOO = (
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "googlenet",
    "convnext_tiny",
    "regnet_y_400mf",
    "squeezenet1_1",
)


def zoo_model(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """(model, a batch of two images) in float64, in eval mode, the same every time."""
    if name == "googlenet":
        options.setdefault("init_weights", False)
    models = torchvision_models()
    torch.set_default_dtype(torch.float64)
    try:
        with no_init():
            model = getattr(models, name)(weights=None, **options)
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    return randomise(model, weights=True).eval(), x
