"""The networks of the experiments, each of at most 10 million MACs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10  # of CIFAR-10 and of Fashion-MNIST


def lenet_300_100() -> nn.Sequential:
    """The fully connected LeNet of the pruning papers: 784-300-100-10, 266,610 weights.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, CLASSES),
    )


class Block(nn.Module):
    """Two 3 × 3 convolutions that halve the image, around a 1 × 1 shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.bn3(self.shortcut(x)))


class ResNet8(nn.Module):
    """A residual network of eight layers in the longest path: 9.0 million MACs at 32²."""

    def __init__(self, widths: tuple[int, ...] = (16, 28, 56, 112)):
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:]))
        self.classifier = nn.Linear(widths[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, 32, 32)."""
        x = self.blocks(F.relu(self.bn(self.conv(images))))
        return self.classifier(x.mean((2, 3)))


def vgg(channels: int = 3, size: int = 32, norm: bool = False) -> nn.Sequential:
    """VGG in small: 3 × 3 convolutions, a ReLU after each, and a max-pooling after each block.

    8.6 million MACs at 3 × 32², 436 units. Like VGG-16 it has no BatchNorm, unless `norm`.

    Source: Simonyan and Zisserman (2015), Very Deep Convolutional Networks.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for block in ((14, 14), (28, 28), (56, 56), (112,)):
        for outputs in block:
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers.append(nn.ReLU())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return _classified(layers, inputs * (size // 16) ** 2, (128,))


def alexnet(channels: int = 3, size: int = 32, hidden: int = 256) -> nn.Sequential:
    """AlexNet in small: five convolutions, the first of stride 2, and three linear layers.

    The convolutions have a quarter of its maps, and so have the linear layers of its neurons with
    1,024 `hidden` ones: 1,557,098 weights and biases at 3 × 32². With 256 it has 6.2 million MACs
    and 856 units. Neither dropout nor response normalisation.

    Source: Krizhevsky, Sutskever and Hinton (2012), ImageNet Classification.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 24, 5, stride=2, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(24, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    for inputs, outputs in ((64, 96), (96, 96), (96, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    layers.append(nn.MaxPool2d(2))
    return _classified(layers, 64 * (size // 16) ** 2, (hidden, hidden))


def alexnet_full() -> nn.Sequential:
    """AlexNet with all of its maps and neurons, on images of 32² that it enlarges to 227².

    58.3 million weights and biases, with ten classes and without the two halves of the original.

    Source: Krizhevsky, Sutskever and Hinton (2012), ImageNet Classification.
    """
    layers: list[nn.Module] = [nn.Upsample(size=(227, 227), mode="bilinear")]
    layers += [nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs in ((256, 384), (384, 384), (384, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2))
    return _classified(layers, 256 * 6 * 6, (4096, 4096))


def _classified(features: list[nn.Module], inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """The feature maps and the linear layers on them, with weights drawn for ReLUs."""
    layers = [*features, nn.Flatten()]
    for outputs in hidden:
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    model = nn.Sequential(*layers, nn.Linear(inputs, CLASSES))
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model
