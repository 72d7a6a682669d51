"""The loss or the metric of a batch, and how it changes: per example where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, NotFiniteError
from .recording import Rows, pick_examples


class Judge:
    """A loss or metric on one batch.

    Args:
        judge: judge(output, target) -> one value per example, or a number for the whole batch.
        what: 'loss' or 'metric', for messages.
        output: what the uncut model returns.
        target: of the batch.
        n: how many examples there are.

    Attributes:
        what: as given.
        base: its value for the uncut model, (n,) or (1,), float64.
        rowwise: whether an example's value depends on that example alone.
    """

    def __init__(
        self, judge: Callable[[Any, Any], Any], what: str, output: Any, target: Any, n: int
    ):
        self._judge, self.what, self._target, self._n = judge, what, target, n
        self.base = self.whole(output)
        if not bool(torch.isfinite(self.base).all()):
            raise NotFiniteError(f"the {what} of the uncut network is not finite (NaN or infinite)")
        self.rowwise = len(self.base) == n and self._per_example and self._alone(output)

    def whole(self, output: Any) -> Tensor:
        """Its value for an output of the whole batch, (n,) or (1,)."""
        value = torch.as_tensor(self._judge(output, self._target)).detach()
        self._per_example = value.dim() > 0 and value.numel() == self._n
        if value.numel() not in (1, self._n):
            raise DataError(
                f"the {self.what} has shape {tuple(value.shape)}: return one value per example, "
                f"({self._n},), or a scalar for the batch"
            )
        return value.double().reshape(-1).cpu()

    def rows(self, output: Any, examples: Rows) -> Tensor:
        """The change in each row of a chunk, (rows,)."""
        value = torch.as_tensor(self._judge(output, pick_examples(self._target, examples, self._n)))
        return value.detach().double().reshape(-1).cpu() - self.base[examples]

    def _alone(self, output: Any) -> bool:
        """Whether some of the examples have the same values without the others."""
        some = (
            torch.arange(self._n - 1, -1, -2) if self._n > 1 else torch.zeros(2, dtype=torch.int64)
        )
        try:
            change = self.rows(pick_examples(output, some, self._n), some)
        except (RuntimeError, ValueError, IndexError):
            return False
        scale = 1e-12 + self.base[some].abs()
        return change.shape == some.shape and bool((change.abs() <= 1e-5 * scale).all())
