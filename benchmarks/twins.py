"""Torch-Pruning's criteria and ours that ask the same: how each of theirs is made and fed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
SCORE_BATCHES = 10


def nothing(importance: Any, model: nn.Module, batches: Batches) -> None:
    """For criteria that look at weights alone."""


def gradients(importance: Any, model: nn.Module, batches: Batches) -> None:
    """Of the loss, added up over the batches."""
    model.zero_grad()
    device = next(model.parameters()).device
    for images, labels in batches:
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()


def squared_gradients(importance: Any, model: nn.Module, batches: Batches) -> None:
    """Of the loss of one example at a time, as the documentation of the criterion has it."""
    device = next(model.parameters()).device
    importance.zero_grad()
    for images, labels in batches:
        for image, label in zip(
            images.to(device).split(1), labels.to(device).split(1), strict=True
        ):
            model.zero_grad()
            F.cross_entropy(model(image), label).backward()
            importance.accumulate_grad(model)


def activations(importance: Any, model: nn.Module, batches: Batches) -> None:
    """What the layers read; only the last batch counts."""
    device = next(model.parameters()).device
    with torch.no_grad(), importance.compute_importance(model):
        for images, _ in batches:
            model(images.to(device))


@dataclass(frozen=True)
class Twin:
    """One criterion on both sides.

    Attributes:
        ours: its name in `secateurs.criteria`.
        theirs: its class in `torch_pruning.importance`.
        options: of theirs, where the defaults are another criterion.
        show: (importance, model, batches): what theirs must see before it ranks.
        batches: how many.
        every_step: before each of Torch-Pruning's steps, since it does not survive one.
        norm: it looks at BatchNorm scales, so it needs them.
    """

    ours: str
    theirs: str
    options: dict[str, Any] = field(default_factory=dict)
    show: Callable[[Any, nn.Module, Batches], None] = nothing
    batches: int = 0
    every_step: bool = False
    norm: bool = False

    def called(self, side: str) -> str:
        """What one side calls it, for a table."""
        if side == "ours":
            return f"`{self.ours}`"
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"`{self.theirs}({options})`" if options else f"`{self.theirs}`"

    def make(self) -> Any:
        """Torch-Pruning's side."""
        import torch_pruning as tp

        return getattr(tp.importance, self.theirs)(**self.options)


TWINS = {
    "taylor": Twin("taylor", "GroupTaylorImportance", show=gradients, batches=SCORE_BATCHES),
    "l2": Twin("weight", "GroupMagnitudeImportance"),
    "l1": Twin("l1", "GroupMagnitudeImportance", {"p": 1}),
    "lamp": Twin("lamp", "LAMPImportance"),
    "fpgm": Twin("fpgm", "FPGMImportance"),
    "bn-scale": Twin("bn-scale", "BNScaleImportance", norm=True),
    "obd": Twin("obd", "GroupHessianImportance", show=squared_gradients, batches=SCORE_BATCHES),
    "activation-abs": Twin(
        "activation-abs", "ActivationImportance", show=activations, batches=1, every_step=True
    ),
    "random": Twin("random", "RandomImportance"),
}
