"""Keep a pruned network and get it back: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..atomic import write_text, write_with
from ..errors import FileError
from ..plan import Plan
from ..surgery.apply import apply
from .pt2 import read_pt2

M = TypeVar("M", bound=nn.Module)

WEIGHTS, PLAN, HISTORY = "model.safetensors", "plan.json", "history.json"
MODEL_ONNX = "model.onnx"


def unique_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict with every shared tensor under its first name only."""
    seen: set[int] = set()
    out: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses two names for one storage
    plain = {
        n: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for n, t in plain.items()
    }
    write_with(path, lambda p: safetensors.torch.save_file(plain, p, dict(metadata or {})))


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and metadata from a safetensors file.

    Raises:
        FileError: the file is missing, truncated or not safetensors.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise FileError(f"cannot read {path} as safetensors: {error}") from error


def save(
    model: nn.Module,
    plan: Plan,
    directory: str | Path,
    *,
    history: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a pruned model: weights as safetensors, plan and history as JSON.

    Args:
        model: the pruned model.
        plan: the plan that leads from the original class to it.
        directory: made if it is not there; files of these names in it are replaced.
        history: records of how it came about.

    Returns:
        The directory.

    Raises:
        OSError: a file cannot be written; the old one stays, since each is written whole.

    >>> import tempfile, torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> plan = sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]})
    >>> path = sc.save(sc.apply(net, plan), plan, tempfile.mkdtemp())
    >>> sorted(file.name for file in path.iterdir())
    ['model.safetensors', 'plan.json']
    """
    directory = Path(directory)
    save_tensors(directory / WEIGHTS, unique_state(model), {"format": "pt"})
    plan.save(directory / PLAN)
    if history is not None:
        write_text(directory / HISTORY, json.dumps(history, indent=1))
    return directory


@overload
def load(path: str | Path) -> nn.Module: ...
@overload
def load(path: str | Path, model: M) -> M: ...
def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Give a fresh instance of the original class the shape and the weights of a saved network.

    A `.pt2` file needs no instance: it is a network in itself, in eval mode for good. It is read
    as plain data first, and refused if anything in it would be unpickled, evaluated or called.

    Args:
        path: a directory written by `save` or `result.save`, or a file of `export_pt2`.
        model: a new instance of the original, uncut model; it becomes the pruned one. None for
            a `.pt2` file.

    Returns:
        The same model, pruned and trainable; of a `.pt2` file, a module to call.

    Raises:
        FileError: a file is missing, truncated or foreign, or does not fit; or a `.pt2` file holds
            code or pickle. The model is unchanged.
        PlanError: the plan does not fit this model; the model is unchanged.

    >>> import tempfile, torch, secateurs as sc
    >>> make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> net = make()
    >>> plan = sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]})
    >>> path = sc.save(sc.apply(net, plan), plan, tempfile.mkdtemp())
    >>> sc.load(path, make())[0].out_features
    6
    """
    directory = Path(path)
    if directory.suffix == ".pt2" and not directory.is_dir():
        if model is not None:
            raise FileError(f"{path} is a network in itself; load it without a model")
        return read_pt2(path)
    if model is None:
        raise FileError(
            f"{path} holds weights and a plan, not a network: pass a new instance of the original "
            "model too (only a file that ends in .pt2 does without)"
        )
    plan = Plan.load(directory / PLAN)
    tensors, _ = load_tensors(directory / WEIGHTS)
    plan.check(model)
    check_state(model, plan, tensors, directory / WEIGHTS)
    apply(model, plan, inplace=True)
    fill_state(model, tensors)
    return model


def check_state(
    model: nn.Module, plan: Plan, tensors: Mapping[str, torch.Tensor], where: object
) -> None:
    """Refuse tensors that are not those of this model after this plan.

    Raises:
        FileError: a tensor is missing, foreign or of another shape.
    """
    wanted = {
        name: plan.tensors[name].new_shape if name in plan.tensors else tuple(tensor.shape)
        for name, tensor in unique_state(model).items()
    }
    for name in sorted(wanted.keys() ^ tensors.keys()):
        kind = "lacks" if name in wanted else "has a foreign"
        raise FileError(f"{where} {kind} tensor {name!r}; it was not saved from this model")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise FileError(
                f"{where}: tensor {name!r} has shape {tuple(tensors[name].shape)}, not {shape}"
            )


def fill_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy checked tensors into a model."""
    with torch.no_grad():
        for name, tensor in unique_state(model).items():
            tensor.data = tensors[name].to(device=tensor.device, copy=True)
