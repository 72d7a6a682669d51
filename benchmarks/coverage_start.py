"""What every process of the coverage table starts with, imported once: they are forks."""

import coverage_one  # noqa: F401
from vision import torchvision_models

torchvision_models()  # what follows imports torchvision

import timm  # noqa: E402, F401
import torch_pruning  # noqa: E402, F401
import transformers.modeling_utils  # noqa: E402, F401
