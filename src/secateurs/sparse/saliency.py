"""Saliencies: what a single weight is worth. One small object each; a new one is one table line."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ..batches import Loss, Objective
from ..errors import ConfigError, DataError, NotFiniteError, nearest
from .curvature import gauss_newton_diagonal, obd_diagonal
from .derivatives import mean_gradient, parameters_of

Named: TypeAlias = dict[str, Tensor]


@runtime_checkable
class Saliency(Protocol):
    """One number per weight, finite, higher = keep.

    Those that come along are at least 0; one of your own may be negative. Under thresholds that
    are given (t ≥ 0) a weight goes where it is negative.

    Attributes:
        name: how it is called; it tells apart saliencies of other options.
        needs: what it is taken from: 'gradient' or 'curvature' of the loss, or '' where the
            weights alone tell it and no data is needed.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> str: ...

    def of(
        self,
        model: nn.Module,
        names: Iterable[str],
        batches: Iterable[Any] = (),
        *,
        loss: Loss | None = None,
        objective: Objective | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Named:
        """The saliency of every weight of some parameters.

        Args:
            model: the network, as it is judged: with the masked weights, where there are masks.
                It runs in eval mode and is left untouched.
            names: paths of parameters.
            batches: pairs (input, target) for `loss`, anything for `objective`; they are seen
                once.
            loss: loss(output, target) -> one value per example, or the scalar mean over them.
            objective: objective(model, batch) -> the same, for anything that is not a pair.
            weights: path -> the weights that are judged, by default the model's own: pass the
                dense ones where the model holds masked ones. Derivatives are still taken at
                the model's.

        Returns:
            Path -> a tensor of the shape of the parameter, on its device.

        Raises:
            ConfigError: the model has no parameter of a name.
            DataError: no data, or no loss, where they are needed.
            DerivativeError: a derivative that is needed cannot be had.
            NotFiniteError: the loss or a saliency is NaN or infinite.
        """


class Weighed(ABC):
    """A saliency that judges each weight by what a measure over the data says of it alone."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def measure(
        self, model: nn.Module, names: list[str], batches: Iterable[Any], **by: Any
    ) -> Named:
        """What the data says, by loss= or objective=: a tensor of each parameter's shape."""

    @abstractmethod
    def each(self, weight: Tensor, measured: Tensor) -> Tensor:
        """The saliency of each weight of one parameter."""

    def of(
        self,
        model: nn.Module,
        names: Iterable[str],
        batches: Iterable[Any] = (),
        *,
        loss: Loss | None = None,
        objective: Objective | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Named:
        """See `Saliency.of`."""
        names = list(names)
        own = {name: p.detach() for name, p in parameters_of(model, names).items()}
        measured = self.measure(model, names, batches, loss=loss, objective=objective)
        with torch.no_grad():
            return {
                name: self._checked(name, own[name] if weights is None else weights[name], found)
                for name, found in measured.items()
            }

    def _checked(self, name: str, weight: Tensor, measured: Tensor) -> Tensor:
        found = self.each(weight, measured)
        if not isinstance(found, Tensor) or found.shape != weight.shape:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"saliency {self.name!r} gave {given} for {name!r}, whose weights are "
                f"{tuple(weight.shape)}: return one number per weight"
            )
        if not bool(torch.isfinite(found).all()):
            raise NotFiniteError(f"saliency {self.name!r} is not finite in {name!r}")
        return found


class _ByWeights(Weighed):
    """A saliency that needs no data."""

    @property
    def needs(self) -> str:
        return ""

    def measure(
        self, model: nn.Module, names: list[str], batches: Iterable[Any], **by: Any
    ) -> Named:
        return {name: p.detach() for name, p in parameters_of(model, names).items()}


class _ByGradient(Weighed):
    """A saliency from the gradient of the loss."""

    @property
    def needs(self) -> str:
        return "gradient"

    def measure(
        self, model: nn.Module, names: list[str], batches: Iterable[Any], **by: Any
    ) -> Named:
        return mean_gradient(model, names, batches, **by)


class _ByCurvature(Weighed):
    """`s = ½ h w²`, with h = ∂²C/∂w² in one form or another."""

    @property
    def needs(self) -> str:
        return "curvature"

    def each(self, weight: Tensor, measured: Tensor) -> Tensor:
        return measured * weight.square() / 2


@dataclass(frozen=True)
class Magnitude(_ByWeights):
    """`s = |w|`.

    Source: Han et al., Learning both weights and connections (2015); Guo et al., Dynamic network
    surgery (2016), section 3.2.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
    >>> Magnitude().of(net, ["weight"])["weight"].tolist()
    [[3.0, 2.0]]
    """

    @property
    def name(self) -> str:
        return "magnitude"

    def each(self, weight: Tensor, measured: Tensor) -> Tensor:
        return weight.abs()


@dataclass(frozen=True)
class Taylor(_ByGradient):
    """`s = |w · g|`, with g the gradient of the mean loss over all the data.

    To first order, how much the loss changes without the weight. In a network that was trained to
    the end g is near zero, and this says little: see `Obd`.

    Source: Mozer, Smolensky, Skeletonization (1989), for units; Molchanov et al. (2019),
    equation 8, is its square.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
    >>> data = [(torch.tensor([[1.0, 5.0]]), None)]
    >>> found = Taylor().of(net, ["weight"], data, loss=lambda output, _: output.sum(1))
    >>> found["weight"].tolist()  # C = w·x
    [[3.0, 10.0]]
    """

    @property
    def name(self) -> str:
        return "taylor"

    def each(self, weight: Tensor, measured: Tensor) -> Tensor:
        return (weight * measured).abs()


@dataclass(frozen=True)
class Obd(_ByCurvature):
    """`s = ½ h w²`, with h = ∂²C/∂w² of the mean loss by the recursion, `obd_diagonal`.

    How much the loss rises without the weight, to second order at a minimum of the loss, where the
    gradient is zero, with the weights taken one at a time.

    Source: LeCun, Denker, Solla, Optimal Brain Damage (1990), equation 5 and section 2.2.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
    >>> data = [(torch.tensor([[1.0, 5.0]]), None)]
    >>> found = Obd().of(net, ["weight"], data, loss=lambda output, _: output.square().sum(1))
    >>> found["weight"].tolist()  # C = (w·x)²
    [[9.0, 100.0]]
    """

    @property
    def name(self) -> str:
        return "obd"

    def measure(
        self, model: nn.Module, names: list[str], batches: Iterable[Any], **by: Any
    ) -> Named:
        return obd_diagonal(model, names, batches, **by)


@dataclass(frozen=True)
class GaussNewton(_ByCurvature):
    """The same with the exact diagonal of the Gauss-Newton matrix, `gauss_newton_diagonal`.

    It follows the second derivatives by two units at a time, which the recursion drops, and goes
    through any operation; it costs a backward pass per example and output.

    >>> GaussNewton().name, GaussNewton().needs
    ('gauss-newton', 'curvature')
    """

    @property
    def name(self) -> str:
        return "gauss-newton"

    def measure(
        self, model: nn.Module, names: list[str], batches: Iterable[Any], **by: Any
    ) -> Named:
        return gauss_newton_diagonal(model, names, batches, **by)


@dataclass(frozen=True)
class Random(_ByWeights):
    """`s` uniform in [0, 1), fixed by the seed and the parameter's path: the baseline.

    >>> net = torch.nn.Linear(2, 1)
    >>> one, two = (Random(seed=s).of(net, ["weight"])["weight"] for s in (0, 1))
    >>> bool((one == two).any())
    False
    """

    seed: int = 0

    @property
    def name(self) -> str:
        return f"random-{self.seed}" if self.seed else "random"

    def measure(
        self, model: nn.Module, names: list[str], batches: Iterable[Any], **by: Any
    ) -> Named:
        return {
            name: torch.rand(
                p.shape,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode())),
            ).to(p.device)
            for name, p in parameters_of(model, names).items()
        }

    def each(self, weight: Tensor, measured: Tensor) -> Tensor:
        return measured


@dataclass(frozen=True)
class Own(_ByGradient):
    """A function of yours: function(weight, gradient) -> one number per weight.

    Args:
        function: it is given the weights of one parameter and the gradient of the mean loss there,
            two tensors of one shape, and returns a third, higher = keep.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
    >>> data = [(torch.tensor([[1.0, 5.0]]), None)]
    >>> movement = Own(lambda weight, gradient: -weight * gradient)
    >>> found = movement.of(net, ["weight"], data, loss=lambda output, _: output.sum(1))
    >>> found["weight"].tolist()
    [[3.0, -10.0]]
    """

    function: Callable[[Tensor, Tensor], Tensor]

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def each(self, weight: Tensor, measured: Tensor) -> Tensor:
        return self.function(weight, measured)


_ALL: tuple[Saliency, ...] = (
    Magnitude(),
    Taylor(),
    Obd(),
    GaussNewton(),
    Random(),
)

SALIENCIES: dict[str, Saliency] = {saliency.name: saliency for saliency in _ALL}


def find_saliency(saliency: str | Saliency | Callable[[Tensor, Tensor], Tensor]) -> Saliency:
    """The saliency of this name, the object itself, or a function of (weight, gradient) as one.

    Raises:
        ConfigError: no saliency has this name, or the object is none.

    >>> find_saliency("magnitude").needs, find_saliency(torch.mul).needs
    ('', 'gradient')
    """
    if isinstance(saliency, str):
        if saliency not in SALIENCIES:
            raise ConfigError(f"no saliency is called {saliency!r}{nearest(saliency, SALIENCIES)}")
        return SALIENCIES[saliency]
    if isinstance(saliency, Saliency):
        return saliency
    if callable(saliency):
        return Own(saliency)
    raise ConfigError(
        f"{saliency!r} is not a saliency: pass a name, a function of (weight, gradient), or an "
        "object with name, needs and of"
    )
