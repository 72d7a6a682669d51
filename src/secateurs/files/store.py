"""Keep a pruned network and get it back: safetensors and JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, overload

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..atomic import check_file, read_text, replacing, write_with
from ..errors import ConfigError, FileError, nearest
from ..frontend import FrontEnd
from ..plan import Plan
from ..surgery.apply import apply
from .coded import tensors as codes
from .coded.tensors import Coded
from .coded.values import KINDS
from .pt2 import read_pt2

M = TypeVar("M", bound=nn.Module)

WEIGHTS, PLAN, HISTORY = "model.safetensors", "plan.json", "history.json"
MODEL_ONNX, KERAS = "model.onnx", "model.keras"
SEAL = "sha256"


def unique_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict with every shared tensor under its first name only."""
    seen: set[int] = set()
    out: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


def loose_buffers(model: nn.Module) -> set[str]:
    """The names of the buffers that are not persistent: no state dict holds them."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all, with a digest of all that is in them.

    Raises:
        FileError: the system refuses; what was there is untouched.
    """
    write_with(path, lambda place: _write_tensors(place, tensors, metadata or {}))


def _write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses two names for one storage
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in plain.values())
    for name, tensor in plain.items():
        own = tensor.untyped_storage()
        if own.nbytes() > tensor.nbytes or storages[own.data_ptr()] > 1:
            plain[name] = tensor.clone()
    sealed = {**metadata, SEAL: digest(plain, metadata)}
    try:
        safetensors.torch.save_file(plain, path, sealed)
    except safetensors.SafetensorError as error:  # a full disk has no type of its own there
        raise OSError(str(error)) from error


def load_tensors(
    path: str | Path, *, foreign: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and metadata from a safetensors file.

    Args:
        path: the file.
        foreign: accept a file that another program wrote, which has no digest to check.

    Raises:
        FileError: the file is missing, truncated, damaged or not safetensors.
    """
    check_file(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (
        OSError, safetensors.SafetensorError, ValueError, TypeError, RuntimeError, OverflowError
    ) as error:  # fmt: skip
        raise FileError(f"cannot read {path} as safetensors: {error}") from error
    seal = metadata.pop(SEAL, None)
    if seal is None and not foreign:
        raise FileError(f"{path} was not written by this library: it holds no {SEAL}")
    if seal is not None and seal != digest(tensors, metadata):
        raise FileError(f"{path} is damaged: its {SEAL} is not that of what it holds")
    return tensors, metadata


def digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of names, dtypes, shapes, values and metadata, as hexadecimal digits."""
    total = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save(
    model: nn.Module,
    plan: Plan | None,
    directory: str | Path,
    *,
    history: list[dict[str, Any]] | None = None,
    sparse: bool = False,
    values: str = "exact",
) -> Path:
    """Write a pruned model: weights as safetensors, plan and history as JSON.

    Args:
        model: the pruned model.
        plan: the plan that leads from the original class to it; None if no unit was cut, but
            only weights were set to zero.
        directory: made if it is not there; files of these names in it are replaced, all or none.
        history: records of how it came about.
        sparse: write only what is not zero, and where it stands: a small file if most weights are
            zero. `load` reads it as any other; other programs read it by its documented layout.
        values: in a sparse file, 'exact': every bit as it is; or, with loss, 'int8': 8 bits on a
            line between a tensor's lowest and highest value (off by at most 1/510 of their
            difference, plus the rounding of the dtype); or 'codebook': at most 64 shared values a
            tensor, by k-means (Han et al. 2016, Deep Compression), or 8 bits where those are
            shorter. Both touch tensors of two or more axes only.

    Returns:
        The directory.

    Raises:
        ConfigError: `values` is not one of these, or the file is not sparse.
        FileError: the system refuses, or a tensor is not strided; what was there is untouched.

    Warns:
        UserWarning: many zeros of a sparse file are -0.0, each of which is stored.

    >>> import tempfile, torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> plan = sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]})
    >>> path = sc.save(sc.apply(net, plan), plan, tempfile.mkdtemp())
    >>> sorted(file.name for file in path.iterdir())
    ['model.safetensors', 'plan.json']
    """
    if values not in KINDS or (values != KINDS[0] and not sparse):
        why = "needs sparse=True" if values in KINDS else f"is unknown{nearest(values, KINDS)}"
        raise ConfigError(f"values={values!r} {why}")
    directory = Path(directory)
    text = (plan or Plan({}, {}, {})).to_json()
    tensors = unique_state(model)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise FileError(
                f"tensor {name!r} is sparse in memory ({tensor.layout}); save the dense network, "
                "whose file sparse=True makes small"
            )
    if sparse:
        plain = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        tensors = codes.encode(plain, KINDS.index(values))
    with ExitStack() as files:  # each is written before the first one is put in its place
        place = {
            name: files.enter_context(replacing(directory / name))
            for name in (WEIGHTS, PLAN, *([HISTORY] if history is not None else []))
        }
        metadata = {"format": "pt", "plan": _sum(text)}
        _write_tensors(place[WEIGHTS], tensors, metadata)
        place[PLAN].write_text(text, encoding="utf-8")
        if history is not None:
            place[HISTORY].write_text(json.dumps(history, indent=1), encoding="utf-8")
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
        FileError: a file is missing, damaged or foreign, or does not fit; or a `.pt2` file holds
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
    text = read_text(directory / PLAN)
    plan = Plan.from_json(text)
    weights = directory / WEIGHTS
    stored, metadata = load_tensors(weights)
    if metadata.get("plan") != _sum(text):
        raise FileError(
            f"{directory / PLAN} is not the plan that {WEIGHTS} was saved with: one of the two was "
            "damaged, edited or replaced"
        )
    plan.check(model)
    found = codes.read(stored, str(weights))
    check_state(model, plan, found, weights)  # the sizes too, before anything so large is made
    tensors = codes.decode(found)
    apply(model, plan, inplace=True)
    fill_state(model, tensors)
    return model


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_state(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor | Coded],
    where: object,
    *,
    loose: bool = False,
) -> None:
    """Refuse tensors that are not those of this model after this plan.

    Args:
        model: the original.
        plan: what is cut from it.
        tensors: by name; of those in codes, dtype and shape are looked at.
        where: the file, for messages.
        loose: buffers that are not persistent may be among them.

    Raises:
        FileError: a tensor is missing, foreign, or of another shape or kind of number.
    """
    state = unique_state(model)
    wanted = {
        name: plan.tensors[name].new_shape if name in plan.tensors else tuple(tensor.shape)
        for name, tensor in state.items()
    }
    besides = loose_buffers(model) if loose else set()
    for name in sorted(wanted.keys() ^ (tensors.keys() - besides)):
        kind = "lacks" if name in wanted else "has a foreign"
        raise FileError(f"{where} {kind} tensor {name!r}; it was not saved from this model")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise FileError(
                f"{where}: tensor {name!r} has shape {tuple(tensors[name].shape)}, not {shape}"
            )
        given, own = tensors[name].dtype, state[name].dtype
        if (given.is_floating_point, given.is_complex) != (own.is_floating_point, own.is_complex):
            raise FileError(f"{where}: tensor {name!r} holds {given}, where the model has {own}")


def fill_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy checked tensors into a model, its buffers that are not persistent where given."""
    if isinstance(model, FrontEnd):
        model.fill(dict(tensors))
        return
    state = unique_state(model)
    given = {name: buffer for name, buffer in model.named_buffers() if name in tensors}
    with torch.no_grad():
        for name, tensor in {**given, **state}.items():
            tensor.data = tensors[name].to(device=tensor.device, copy=True)
