"""What is pruned in the experiments: trained networks, their data, and how they are fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cifar
import fashion
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_nets import ResNet8, alexnet, alexnet_full, lenet_300_100, vgg
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lenet
import mnist
from secateurs.atomic import write_with
from secateurs.process.stream import Stream

CACHE = cifar.CACHE.parent / "networks"  # those that are trained here
HELD_OUT = 5_000  # training images at the end that settings are chosen on
BATCH = 64


@dataclass(frozen=True)
class Images:
    """One split, as bytes, and how a batch of it is made.

    Attributes:
        pixels: uint8 (N, channels, height, width).
        labels: int64 (N,).
        mean, std: of the training pixels in [0, 1].
        shift: training images are moved by up to so many pixels both ways, at random.
        flip: half of the training images are mirrored, at random.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    shift: int = 0
    flip: bool = False

    def part(self, chosen: slice | Tensor) -> Images:
        return Images(
            self.pixels[chosen], self.labels[chosen], self.mean, self.std, self.shift, self.flip
        )

    def sample(self, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Batches of images drawn without replacement, as they are."""
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.labels), generator=draw)[:count]
        return [(self.standardised(part), self.labels[part]) for part in chosen.split(2 * BATCH)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch of shuffled training batches; the draws are from PyTorch's generator."""
        for chosen in torch.randperm(len(self.labels)).split(BATCH):
            if len(chosen) == BATCH:
                yield self._augmented(self.standardised(chosen)), self.labels[chosen]

    def standardised(self, chosen: slice | Tensor) -> Tensor:
        return (self.pixels[chosen].float() / 255 - self.mean) / self.std

    def _augmented(self, images: Tensor) -> Tensor:
        count, size = len(images), images.shape[-1]
        if self.shift:
            padded = F.pad(images, [self.shift] * 4)
            windows = padded.unfold(2, size, 1).unfold(3, size, 1)
            down, right = torch.randint(2 * self.shift + 1, (2, count))
            images = windows[torch.arange(count), :, down, right]
        if self.flip:
            mirrored = torch.rand(count, 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        return images

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """Wrongly classified images, in percent."""
        device, mode, wrong = next(model.parameters()).device, model.training, 0
        model.eval()
        for chosen in torch.arange(len(self.labels)).split(500):
            logits = model(self.standardised(chosen).to(device))
            wrong += int((logits.argmax(1).cpu() != self.labels[chosen]).sum())
        model.train(mode)
        return 100 * wrong / len(self.labels)


def sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """What every network here is trained and fine-tuned with."""
    return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def cosine(optimizer: torch.optim.Optimizer, updates: int) -> Any:
    """The rate falls to nothing along a cosine."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(updates, 1))


def fine_tune(model: nn.Module, batches: Iterable, updates: int, lr: float) -> None:
    """Update the weights once for each batch, at a rate that falls from `lr`."""
    device, mode = next(model.parameters()).device, model.training
    model.train()
    optimizer = sgd(model.parameters(), lr)
    schedule = cosine(optimizer, updates)
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        schedule.step()
    model.train(mode)


@torch.no_grad()
def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one image, as `torch.utils.flop_counter` counts them."""
    with FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Task:
    """A network to prune.

    Attributes:
        name, title: of the network; of network and data, for the table.
        build: an untrained network.
        load: 'train' or 'test' -> the split.
        training: weight updates and first rate of the base network's training.
        updates: weight updates of a pruning run in all.
        each: of these, after each removal.
        lr: rate at the start of each fine-tuning.
        given: seed -> base weights that are in the repository.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    load: Callable[[str], Images]
    training: tuple[int, float]
    updates: int
    each: int
    lr: float
    given: Callable[[int], Path] | None = None

    def data(self, validation: bool) -> tuple[Images, Images]:
        """What is trained on, and what the error is measured on."""
        train = self.load("train")
        if not validation:
            return train, self.load("test")
        return train.part(slice(-HELD_OUT)), train.part(slice(-HELD_OUT, None))

    def weights(self, seed: int, validation: bool) -> Path:
        """Where the trained weights lie; those for validation have not seen what is held out."""
        if self.given is not None and not validation:
            return self.given(seed)
        split = "-held-out" if validation else ""
        return CACHE / f"{self.name}{split}-seed{seed}.safetensors"

    def trained(self, seed: int, validation: bool) -> nn.Module:
        """The base network, in eval mode."""
        model = self.build()
        model.load_state_dict(load_file(self.weights(seed, validation)))
        return model.eval()

    def train(self, seed: int, validation: bool) -> None:
        """Train the base network, unless its weights are there."""
        path = self.weights(seed, validation)
        if path.exists():
            return
        torch.manual_seed(seed)
        model = self.build().to("cuda" if torch.cuda.is_available() else "cpu")
        updates, lr = self.training
        batches = Stream(self.data(validation)[0], seed).take(updates)
        fine_tune(model, batches, updates, lr)
        write_with(path, lambda temporary: save_file(model.state_dict(), temporary))


@cache
def _cifar(split: str) -> Images:
    return Images(*cifar.load(split), cifar.MEAN, cifar.STD, shift=4, flip=True)


@cache
def _mnist(split: str) -> Images:
    mean, std = (torch.tensor(value) for value in (mnist.MEAN, mnist.STD))
    return Images(*mnist.load_bytes(split), mean, std)


@cache
def _fashion(split: str) -> Images:
    mean, std = (torch.tensor(value) for value in (fashion.MEAN, fashion.STD))
    return Images(*fashion.load(split), mean, std, flip=True)


def _plain(
    data: str, title: str, channels: int, size: int, load: Callable[[str], Images]
) -> list[Task]:
    """The nets without BatchNorm, which want a lower rate, on one set of images."""
    names = {"vgg": ("VGG-like", vgg), "alexnet": ("AlexNet-like", alexnet)}
    return [
        Task(
            f"{name}-{data}",
            f"{likeness}, {title}",
            partial(build, channels, size),
            load,
            training=(3000, 0.01),
            updates=800,
            each=30,
            lr=0.01,
        )
        for name, (likeness, build) in names.items()
    ]


TASKS = {
    task.name: task
    for task in (
        Task(
            "lenet5",
            "LeNet-5, MNIST",
            lenet.lenet5,
            _mnist,
            training=(5000, 0.05),
            updates=1500,
            each=30,
            lr=0.02,
            given=lenet.weights_path,
        ),
        Task(
            "lenet-300-100",
            "LeNet-300-100, MNIST",
            lenet_300_100,
            _mnist,
            training=(10_000, 0.05),
            updates=1500,
            each=30,
            lr=0.02,
        ),
        Task(
            "resnet8",
            "ResNet-8, CIFAR-10",
            ResNet8,
            _cifar,
            training=(3000, 0.1),
            updates=800,
            each=30,
            lr=0.05,
        ),
        *_plain("cifar", "CIFAR-10", 3, 32, _cifar),
        *_plain("fashion", "Fashion-MNIST", 1, 28, _fashion),
        Task(
            "vgg-bn-cifar",
            "VGG-like with BatchNorm, CIFAR-10",
            partial(vgg, norm=True),
            _cifar,
            training=(3000, 0.1),
            updates=800,
            each=30,
            lr=0.05,
        ),
        Task(
            "alexnet-quarter",
            "AlexNet at a quarter of its widths, CIFAR-10",
            partial(alexnet, hidden=1024),
            _cifar,
            training=(8000, 0.01),
            updates=800,
            each=30,
            lr=0.01,
        ),
        Task(
            "alexnet-full",
            "AlexNet at its widths, CIFAR-10 enlarged to 227²",
            alexnet_full,
            _cifar,
            training=(20_000, 0.01),
            updates=800,
            each=30,
            lr=0.005,
        ),
    )
}
