"""A stratified sample of the data: which examples, and what their mean tells of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import DataError
from .changes import count_examples
from .recording import pick_examples

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Examples drawn from strata.

    Attributes:
        stratum: (examples,), which stratum each is from.
        sizes: (strata,), how many examples of the data each stratum has.

    >>> sample = Sample(np.array([0, 0, 1, 1]), np.array([30, 10]))
    >>> rows = np.array([[1.0], [3.0], [8.0], [8.0]])
    >>> sample.mean(rows).tolist(), sample.error(rows).round(3).tolist()
    ([3.5], [0.725])
    """

    stratum: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def mean(self, rows: Array) -> Array:
        """The mean over all of the data, estimated from (examples, …) values of the sample."""
        total = np.zeros(rows.shape[1:])
        for one, size in enumerate(self.sizes):
            total += size / self.sizes.sum() * rows[self.stratum == one].mean(0)
        return total

    def error(self, rows: Array) -> Array:
        """The standard error of that mean.

        Σ_h W_h² (1 − n_h/N_h) s_h²/n_h, a stratum of N_h examples of which n_h were drawn, with
        W_h = N_h/N. Source: Cochran, Sampling Techniques (1977), equation 5.8.
        """
        return np.sqrt(sum((each for each, _ in self._variances(rows)), np.zeros(rows.shape[1:])))

    def apart(self, rows: Array, level: float) -> npt.NDArray[np.bool_]:
        """Whether that mean is not zero: it is further from it than chance explains.

        The quantile is Student's t with Satterthwaite's degrees of freedom, (Σ_h v_h)²/Σ_h
        v_h²/(n_h − 1), where v_h is stratum h's part of the squared standard error. Source: Cochran
        (1977), equation 5.16.
        """
        from scipy.stats import t

        parts = list(self._variances(rows))
        total = sum((each for each, _ in parts), np.zeros(rows.shape[1:]))
        spread = sum((each**2 / free for each, free in parts), np.zeros(rows.shape[1:]))
        freedom = np.divide(total**2, spread, out=np.ones_like(total), where=spread > 0)
        return np.abs(self.mean(rows)) > t.ppf(0.5 + level / 2, freedom) * np.sqrt(total)

    def _variances(self, rows: Array) -> Iterator[tuple[Array, int]]:
        """Each stratum's part of the squared standard error, and its degrees of freedom."""
        for one, size in enumerate(self.sizes):
            own = rows[self.stratum == one]
            if size > len(own):
                weight = (size / self.sizes.sum()) ** 2 * (1 - len(own) / size)
                yield weight * own.var(0, ddof=1) / len(own), len(own) - 1


def draw(batches: Iterable[Any], examples: int, seed: int) -> tuple[Any, Sample]:
    """A sample of the data, stratified by the class where the target is one.

    Each stratum gives a share of the sample in proportion to its size, and at least two examples;
    a class that is too rare for that, or a target that is no class, leaves one stratum only.

    Args:
        batches: pairs (input, target), seen once.
        examples: how many to draw.
        seed: of the draw.

    Returns:
        One batch, and what is known of it.

    Raises:
        DataError: no data, fewer than two examples asked for, or inputs of several shapes.
    """
    if examples < 2:
        raise DataError("a sample needs at least two examples for a standard error")
    random = np.random.default_rng(seed)
    kept: dict[int, list[tuple[float, Any]]] = {}
    sizes: dict[int, int] = {}
    for batch in batches:
        n = count_examples(batch)
        classes = _classes(batch[1], n)
        for i, (one, key) in enumerate(zip(classes, random.random(n).tolist(), strict=True)):
            sizes[one] = sizes.get(one, 0) + 1
            own = kept.setdefault(one, [])
            if len(own) < examples or key < own[-1][0]:
                own.append((key, pick_examples(batch, slice(i, i + 1), n)))
                own.sort(key=lambda pair: pair[0])
                del own[examples:]
    if not sizes:
        raise DataError("the data is empty: no batch was given")
    shares = _shares(sizes, examples)
    if shares is None:
        merged = sorted((pair for own in kept.values() for pair in own), key=lambda pair: pair[0])
        kept, sizes = {0: merged}, {0: sum(sizes.values())}
        shares = {0: min(examples, sizes[0])}
    chosen = [(i, pair[1]) for i, one in enumerate(shares) for pair in kept[one][: shares[one]]]
    sample = Sample(np.array([i for i, _ in chosen]), np.array([sizes[one] for one in shares]))
    return joined([example for _, example in chosen]), sample


def _classes(target: Any, n: int) -> list[int]:
    """The stratum of each example."""
    if isinstance(target, Tensor) and target.shape == (n,) and not target.is_floating_point():
        return target.tolist()
    return [0] * n


def _shares(sizes: dict[int, int], examples: int) -> dict[int, int] | None:
    """How many each stratum gives; None if some would give fewer than two."""
    total = sum(sizes.values())
    if examples >= total:
        return dict(sizes)
    exact = {one: examples * size / total for one, size in sizes.items()}
    shares = {one: int(share) for one, share in exact.items()}
    by_rest = sorted(exact, key=lambda one: shares[one] - exact[one])
    for one in by_rest[: examples - sum(shares.values())]:
        shares[one] += 1
    return shares if min(shares.values()) >= 2 else None


def joined(parts: list[Any]) -> Any:
    """One batch made of several.

    Raises:
        DataError: their inputs have several shapes.
    """
    counts = [count_examples(part) for part in parts]
    flat = [pytree.tree_flatten(part) for part in parts]

    def along(leaves: tuple[Any, ...]) -> Any:
        first = leaves[0]
        if isinstance(first, Tensor) and first.dim() and len(first) == counts[0]:
            return torch.cat(leaves)
        return first

    try:
        merged = [along(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)]
    except (RuntimeError, ValueError) as error:
        raise DataError(f"the examples cannot be put into one batch: {error}") from error
    return pytree.tree_unflatten(merged, flat[0][1])
