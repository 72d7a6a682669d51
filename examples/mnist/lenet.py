"""LeNet-5 in the form that Caffe made the reference for pruning: 20-50-500-10, 431,080 weights."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"


class LeNet5(nn.Module):
    """Two convolutions, each max-pooled, and two linear layers with the only ReLU between them.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition, as
    `lenet_train_test.prototxt` of Caffe has it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        x = F.max_pool2d(self.conv1(images), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def lenet5() -> LeNet5:
    """An untrained LeNet-5."""
    return LeNet5()


def weights_path(seed: int) -> Path:
    """Where the weights trained from `seed` lie."""
    return WEIGHTS / f"lenet5-seed{seed}.safetensors"


def pretrained(seed: int = 0) -> LeNet5:
    """A LeNet-5 that `train.py --seed` has trained, in eval mode; seeds 0, 1 and 2 are here."""
    model = LeNet5()
    model.load_state_dict(load_file(weights_path(seed)))
    return model.eval()
