"""Masks: which single weights of a model are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import FileError, MaskError, nearest
from ..frontend import FrontEnd
from ..plan import Plan
from ..tables import render
from .splicing import layers_of

Shape: TypeAlias = tuple[int, ...]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, getattr(nn, "RMSNorm", nn.LayerNorm))


class Masks(Mapping[str, Tensor]):
    """Parameter path -> mask, a bool tensor of the parameter's shape: True where a weight is kept.

    A parameter with several paths (tied weights) has one mask, listed under its first path and
    found under each. What has no mask is kept whole, and counts as kept.

    Attributes:
        others: parameter path -> shape, of the parameters that have no mask.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> masks = Masks.full(net)
    >>> masks.set("0.weight", net[0].weight > net[0].weight.median())
    >>> masks.kept, masks.total
    (8, 11)
    >>> _ = masks.bake(net)
    >>> int((net[0].weight == 0).sum())
    3
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        others: Mapping[str, Shape] | None = None,
        alias: Mapping[str, str] | None = None,
    ):
        self._masks = dict(masks)
        self.others = dict(others or {})
        self._alias = dict(alias or {})

    @classmethod
    def full(cls, model: nn.Module, names: Iterable[str] | None = None) -> Masks:
        """Masks that keep everything.

        Args:
            model: whose parameters get a mask; nothing is changed.
            names: paths of parameters; by default all of every layer that has a weight of two or
                more dimensions (convolutions, linear and recurrent layers, embeddings; biases
                too). Normalisations and layers with a reparametrised weight get none, nor does
                what a Keras model does not train.

        Raises:
            MaskError: there is no parameter of such a path, or none to mask.
        """
        parameters, alias = _parameters(model)
        wanted = _maskable(model, alias) if names is None else _known(names, parameters, alias)
        if not wanted:
            raise MaskError("there is no weight to mask: no layer has one of two dimensions")
        masks = {
            name: torch.ones(p.shape, dtype=torch.bool, device=p.device)
            for name, p in parameters.items()
            if name in wanted
        }
        others = {name: tuple(p.shape) for name, p in parameters.items() if name not in wanted}
        return cls(masks, others, alias)

    @classmethod
    def from_zeros(cls, model: nn.Module) -> Masks:
        """Masks under which what is exactly zero in the model is gone."""
        masks, (parameters, _) = cls.full(model), _parameters(model)
        for name in masks:
            masks.set(name, parameters[name].detach() != 0)
        return masks

    def of(self, model: nn.Module) -> Masks:
        """These masks with all that the model has beside them: what they do not hold is counted.

        Masks that were put together by hand know neither the other parameters nor which are tied.

        Raises:
            MaskError: the masks are not of this model, or tied weights have different ones.

        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> few = Masks({"0.weight": torch.zeros(2, 3, dtype=torch.bool)})
        >>> few.total, few.of(net).total
        (6, 11)
        """
        self.check(model)
        parameters, alias = _parameters(model)
        masks: dict[str, Tensor] = {}
        for name, mask in self._masks.items():
            first = alias.get(name, name)
            if not torch.equal(masks.setdefault(first, mask), mask):
                raise MaskError(f"the tied weights of {first!r} have masks that differ: give one")
        others = {name: tuple(p.shape) for name, p in parameters.items() if name not in masks}
        return Masks(masks, others, alias)

    # ------------------------------------------------------------------ as a mapping
    def __getitem__(self, name: str) -> Tensor:
        return self._masks[self._alias.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def set(self, name: str, mask: Tensor) -> None:
        """Put another mask in place of a parameter's, and of all that share it.

        Args:
            name: the path of the parameter.
            mask: of its shape: bools, or zeros and ones. It is copied.

        Raises:
            MaskError: there is no such mask, or it has another shape or other values.
        """
        old = self._get(name)
        if tuple(mask.shape) != tuple(old.shape):
            raise MaskError(
                f"the mask of {name!r} must have shape {tuple(old.shape)}, not {tuple(mask.shape)}"
            )
        new = mask.detach().to(old.device, torch.bool, copy=True)
        if mask.dtype != torch.bool and not torch.equal(new.to(mask), mask.to(old.device)):
            raise MaskError(f"the mask of {name!r} must hold bools, or zeros and ones only")
        self._masks = {n: new if own is old else own for n, own in self._masks.items()}

    def share(self, name: str, with_name: str) -> None:
        """Let a parameter have the mask of another one, now and after every change of either.

        `secateurs.sparsify` chooses for them together, by the mean of what each is worth in its
        layer.

        Raises:
            MaskError: one of the two has no mask, or their shapes differ.
        """
        old, new = self._get(name), self._get(with_name)
        if old.shape != new.shape:
            raise MaskError(
                f"{name!r} cannot share the mask of {with_name!r}: their shapes are "
                f"{tuple(old.shape)} and {tuple(new.shape)}"
            )
        self._masks[self._alias.get(name, name)] = new

    def _get(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            hint = nearest(name, self._masks)
            raise MaskError(f"no parameter {name!r} has a mask{hint}") from None

    def to(self, device: torch.device | str) -> Masks:
        """A copy of these masks on a device; what shared a mask still does."""
        own = {id(mask): mask.to(device, copy=True) for mask in self._masks.values()}
        masks = {name: own[id(mask)] for name, mask in self._masks.items()}
        return Masks(masks, self.others, self._alias)

    # ------------------------------------------------------------------ on a model
    def bake(self, model: nn.Module) -> nn.Module:
        """Write zeros into the weights that are gone, in place.

        Returns:
            The same model.

        Raises:
            MaskError: the masks are not of this model; it is unchanged.
        """
        for parameter, mask in self._pairs(model):
            parameter.data.masked_fill_(~mask, 0)
        _tell(model, self)
        return model

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the weights are w⊙T; outside, they are the dense w again.

        Only the data of each parameter is exchanged. A gradient that is taken inside is therefore
        ∂L/∂(w⊙T), for the weights that are gone too: straight through, as splicing needs it (Guo
        et al. 2016, equation 3), where a parametrisation by w⊙T would give zero for those. What
        an optimizer does belongs outside.

        Raises:
            MaskError: the masks are not of this model.

        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> masks = Masks.full(layer)
        >>> masks.set("weight", torch.tensor([[True, False]]))
        >>> with masks.applied(layer):
        ...     layer(torch.tensor([[3.0, 5.0]])).sum().backward()
        >>> layer.weight.grad.tolist(), bool(layer.weight.data[0, 1] == 0)
        ([[3.0, 5.0]], False)
        """
        pairs = self._pairs(model)
        dense = [parameter.data for parameter, _ in pairs]
        try:
            for parameter, mask in pairs:
                parameter.data = torch.where(mask, parameter.data, 0)  # inf · 0 would be NaN
            _tell(model, self)
            yield model
        finally:
            for (parameter, _), data in zip(pairs, dense, strict=True):
                parameter.data = data
            _tell(model, self)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that these masks are not of.

        Raises:
            MaskError: a parameter is missing or of another shape.
        """
        self._pairs(model)

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Every masked parameter of a model with its mask."""
        own = dict(model.named_parameters(remove_duplicate=False))
        pairs = []
        for name, mask in self._masks.items():
            parameter = own.get(name)
            if parameter is None or parameter.shape != mask.shape:
                found = "none" if parameter is None else f"one of shape {tuple(parameter.shape)}"
                raise MaskError(
                    f"the masks are not of this model: they have {name!r} of shape "
                    f"{tuple(mask.shape)}, the model has {found}; after a cut, use masks.cut(plan)"
                )
            pairs.append((parameter, mask))
        return pairs

    def cut(self, plan: Plan) -> Masks:
        """The masks of the network that `secateurs.apply(model, plan)` gives.

        Raises:
            MaskError: the plan is of another network.
        """
        slices = {
            name: next((plan.tensors[p] for p in self.paths(name) if p in plan.tensors), None)
            for name in (*self._masks, *self.others)
        }
        shapes = {name: tuple(mask.shape) for name, mask in self._masks.items()} | self.others
        for name, cut in slices.items():
            if cut is not None and cut.shape != shapes[name]:
                raise MaskError(
                    f"the plan is of another network: {name!r} has shape {shapes[name]} here, "
                    f"and {cut.shape} there"
                )
        done: dict[tuple[int, str], Tensor] = {}  # what shared a mask and loses the same still does
        masks = {}
        for name, mask in self._masks.items():
            cut = slices[name]
            key = (id(mask), "" if cut is None else str(cut.removed))
            if key not in done:
                done[key] = mask.clone() if cut is None else cut.cut(mask)
            masks[name] = done[key]
        others = {
            name: shape if cut is None else cut.new_shape
            for name, shape in self.others.items()
            for cut in (slices[name],)
        }
        return Masks(masks, others, self._alias)

    # ------------------------------------------------------------------ counts
    @property
    def kept(self) -> int:
        """Parameters that are kept, those without a mask among them."""
        return sum(int(mask.sum()) for mask in self._masks.values()) + self.beside

    @property
    def total(self) -> int:
        """All parameters of the network."""
        return sum(mask.numel() for mask in self._masks.values()) + self.beside

    @property
    def beside(self) -> int:
        """Parameters that have no mask."""
        return sum(map(math.prod, self.others.values()))

    @property
    def sparsity(self) -> float:
        """The fraction of the parameters that is gone."""
        return 1 - self.kept / self.total

    @property
    def compression(self) -> float:
        """Parameters of the network / those kept."""
        return self.total / max(self.kept, 1)

    def paths(self, name: str) -> list[str]:
        """Every path of a parameter: the first, and those of weights that are tied to it."""
        return [name, *(other for other, first in self._alias.items() if first == name)]

    def layers(self) -> dict[str, list[str]]:
        """Module path -> the paths of its masked parameters, weight and bias."""
        return layers_of(self._masks)

    def kept_by_layer(self) -> dict[str, int]:
        """Module path -> how many of its masked parameters are kept."""
        return {
            layer: sum(int(self._masks[name].sum()) for name in names)
            for layer, names in self.layers().items()
        }

    def __str__(self) -> str:
        rows = []
        for layer, kept in self.kept_by_layer().items():
            total = sum(self._masks[name].numel() for name in self.layers()[layer])
            rows.append((layer, f"{total:,}", f"{kept:,}", f"{kept / total:.2%}"))
        if self.others:
            rows.append(("without a mask", f"{self.beside:,}", f"{self.beside:,}", "100.00%"))
        rows.append(("all", f"{self.total:,}", f"{self.kept:,}", f"{self.kept / self.total:.2%}"))
        return render(
            f"compressed {self.compression:.1f}×", ("layer", "parameters", "kept", "share"), rows
        )

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, {self.kept:,} of {self.total:,} kept)"

    # ------------------------------------------------------------------ plain data
    def to_tensors(self) -> dict[str, Tensor]:
        """Parameter path -> its mask as packed bits: uint8, the first weight in the lowest bit."""
        return {
            name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))
            for name, mask in self._masks.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], model: nn.Module) -> Masks:
        """The masks of a model that `to_tensors` packed.

        Raises:
            FileError: they are not of this model.
        """
        try:
            masks = cls.full(model, tensors)
        except MaskError as error:
            raise FileError(f"the masks are of another model: {error}") from error
        for name, bits in tensors.items():
            size = masks[name].numel()
            if bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-size // 8),):
                raise FileError(f"the mask of {name!r} is damaged: it must be {size:,} bits")
            mask = np.unpackbits(bits.cpu().numpy(), count=size, bitorder="little")
            masks.set(name, torch.from_numpy(mask).view(masks[name].shape))
        return masks


def _parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Every parameter under its first path, and the first path of every further one."""
    first: dict[int, str] = {}
    parameters: dict[str, nn.Parameter] = {}
    alias: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            alias[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
            parameters[name] = parameter
    return parameters, alias


def _tell(model: nn.Module, names: Iterable[str]) -> None:
    """Let a model of another library know that the data of its tensors was exchanged."""
    if isinstance(model, FrontEnd):
        model.wrote(names)


def _maskable(model: nn.Module, alias: Mapping[str, str]) -> set[str]:
    """The parameters of the layers that have a weight of two or more dimensions."""
    if isinstance(model, FrontEnd):
        return model.maskable()
    out = set()
    for path, module in model.named_modules(remove_duplicate=False):
        own = dict(module.named_parameters(recurse=False))
        if _apart(module) or all(p.dim() < 2 for p in own.values()):
            continue
        paths = (f"{path}.{name}" if path else name for name, p in own.items() if p.dim())
        out |= {alias.get(name, name) for name in paths}
    return out


def _apart(module: nn.Module) -> bool:
    """Whether it is a normalisation, or its weight is made of others at every call."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, (*_NORMS, ParametrizationList)) or any(
        isinstance(hook, (WeightNorm, SpectralNorm)) for hook in hooks
    )


def _known(
    names: Iterable[str], parameters: Mapping[str, nn.Parameter], alias: Mapping[str, str]
) -> set[str]:
    out = {alias.get(name, name) for name in names}
    for name in sorted(out - parameters.keys()):
        hint = nearest(name, parameters)
        raise MaskError(f"the model has no parameter {name!r}{hint}")
    return out
