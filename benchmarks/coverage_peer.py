"""One network of the coverage table under Torch-Pruning, called generically, in its own process.

As its README says: an importance, a pruner over the whole model, the last layer ignored, one step.
The importance is random, as our plan is, so that neither side scores. It is told which tensors are
outputs, and nothing of heads or bare parameters.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
import typer
from coverage_models import sample
from coverage_stage import Record, StopError, count, doubled, measured, run, warm_up
from torch import Tensor, nn

from secateurs.gates import deviation, tensors_of

FRACTION = 0.3


READERS = (nn.Linear, nn.modules.conv._ConvNd)


def pruner_of(model: nn.Module, inputs: Any) -> tp.pruner.BasePruner:
    last = [m for m in model.modules() if isinstance(m, READERS)][-1:]
    return tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=FRACTION,
        ignored_layers=last,
        output_transform=differentiable,
    )


def differentiable(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_of(outputs) if tensor.requires_grad]


def cut(model: nn.Module, inputs: Any) -> nn.Module:
    """The model after one step of the pruner, in place."""
    pruner_of(model, inputs).step()
    return model


def zero_reads(group: Any) -> bool:
    """Zero what a group of the peer takes for its reads; False where that is no reference.

    It is none where a statistic is taken over the axis, or where a layer is not one of these.
    """
    for dependency, indices in group:
        layer = dependency.target.module
        if not dependency.target.type.name.startswith(("CONV", "LINEAR", "BN", "PRELU", "DEPTH")):
            if dependency.target.type.name not in ("ELEMENTWISE", "CONCAT", "SPLIT", "RESHAPE"):
                return False
        elif dependency.handler.__name__ == "prune_in_channels" and isinstance(layer, READERS):
            if getattr(layer, "groups", 1) > 1:
                return False
            dim = 0 if getattr(layer, "transposed", False) else 1
            layer.weight.data.index_fill_(dim, torch.tensor(list(indices)), 0)
    return True


def law(model: nn.Module, inputs: Any) -> tuple[int, int, float]:
    """How many groups could be checked, how many were wrong, and the largest relative error.

    Each group in turn: the network with the group's reads zeroed, against the network without it.
    """
    checked, wrong, worst = 0, 0, 0.0
    for group in pruner_of(model, inputs).step(interactive=True):
        possible = zero_reads(group)
        wanted = tensors_of(run(model, inputs)) if possible else []
        group.prune()
        if possible:
            error = deviation(wanted, tensors_of(run(model, inputs)))[1]
            checked, wrong, worst = checked + 1, wrong + (error > 1e-6), max(worst, error)
    return checked, wrong, worst


def main(name: str, out: Path) -> None:
    """Measure one network, and write its record to OUT."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record = Record(name, out)
    warm_up(cut)
    try:
        with record.stage("build", 300):
            made = sample(name)
            shapes = [t.shape for t in tensors_of(run(made.model, made.inputs))]
        before = copy.deepcopy(made.model)
        with measured(record), record.stage("cut"):
            cut(made.model, made.inputs)
        record["left"] = count(made.model) / count(before)
        with record.stage("run"):
            after = [t.shape for t in tensors_of(run(made.model, made.inputs))]
        record["shape"] = shapes == after
        with record.stage("law"):
            checked, wrong, worst = law(before.double(), doubled(made.inputs))
            record.update(checked=checked, wrong=wrong, law=worst)
        record["stage"] = "done"
    except StopError:
        pass
    record.write()


if __name__ == "__main__":
    typer.run(main)
