"""Batches of tensors in memory, and the accuracy on batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)


def batched(
    images: Tensor, labels: Tensor, batch_size: int, shuffle: torch.Generator | None = None
) -> DataLoader[tuple[Tensor, ...]]:
    """Batches (images, labels), shuffled by a generator or in order.

    The tensors are indexed once a batch, not once an image.
    """
    dataset = TensorDataset(images, labels)
    order: Sampler[int] = (
        SequentialSampler(dataset) if shuffle is None else RandomSampler(dataset, generator=shuffle)
    )
    batches = BatchSampler(order, batch_size, drop_last=False)
    return DataLoader(dataset, sampler=batches, batch_size=None)


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The fraction of examples whose largest output is their class.

    Args:
        model: in the mode that it is to be judged in; gives (batch, classes).
        batches: (inputs, classes), brought to the device of the model.

    >>> accuracy(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
    0.5
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    right = total = 0
    with torch.no_grad():
        for inputs, classes in batches:
            found = model(inputs.to(device)).argmax(1).cpu()
            right += int((found == classes).sum())
            total += len(classes)
    return right / total
