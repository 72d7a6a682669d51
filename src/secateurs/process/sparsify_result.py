"""What a run of `sparsify` gives back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files.store import save
from ..plan import Plan
from ..sparse.masks import Masks
from ..tables import render


@dataclass
class SparsifyResult:
    """A network with zeros for what is gone, and how it came about.

    Attributes:
        model: the network, with the masks baked into its weights.
        masks: which weights are kept.
        history: one record per evaluation: `update`, how many parameters are `kept`, in all and by
            `layers`, `compression`, how many were `pruned` and `spliced` since the last record,
            each of these `changes` by itself, mean training `loss`, `metric`, and `seconds`.
        stopped: why the run ended: it is 'done', the metric fell below the 'floor', a loss was
            'nan', or it was 'interrupted'.
        settings: what the run was started with.
        left: parameter -> why a pattern could not be laid on it.
        dense: parameter -> its weights with those that are gone; see `unbaked`.
        example_inputs: what the model was traced with.
    """

    model: nn.Module
    masks: Masks
    history: list[dict[str, Any]]
    stopped: str
    settings: dict[str, Any]
    left: dict[str, str]
    dense: dict[str, Tensor] = field(repr=False)
    example_inputs: Any = field(repr=False)

    def unbaked(self) -> nn.Module:
        """A copy of the model with the dense weights, from which splicing can go on.

        >>> import torch, secateurs as sc
        >>> net, x = torch.nn.Linear(8, 2), torch.randn(16, 8)
        >>> with_ = dict(train=[(x, x[:, :2])], loss=torch.nn.MSELoss(), progress=False)
        >>> first = sc.sparsify(net, x, sparsity=0.5, updates=4, **with_)
        >>> more = sc.sparsify(
        ...     first.unbaked(), x, sparsity=0.7, updates=4, masks=first.masks, **with_)
        >>> first.masks.kept, more.masks.kept
        (9, 5)
        """
        model = copy.deepcopy(self.model)
        own = dict(model.named_parameters())
        for name, tensor in self.dense.items():
            own[name].data.copy_(tensor)
        return model

    def save(self, directory: str | Path) -> Path:
        """Write weights and history; `secateurs.load` reads the network back.

        Args:
            directory: made if it is not there; files of these names in it are replaced.

        Returns:
            The directory.

        Raises:
            FileError: a file cannot be written; the old one stays.
        """
        return save(self.model, Plan({}, {}, {}), directory, history=self.history)

    def __str__(self) -> str:
        first, last = self.history[0], self.history[-1]
        rows = [("kept", f"{first['kept']:,}", f"{last['kept']:,}")]
        if first["metric"] is not None and last["metric"] is not None:
            name = self.settings.get("metric", "metric")
            rows.append((name, f"{first['metric']:.4f}", f"{last['metric']:.4f}"))
        rows.append(("compression", f"{first['compression']:.1f}×", f"{last['compression']:.1f}×"))
        title = f"sparsified; stopped: {self.stopped}"
        alone = [f"left dense: {name}: {why}" for name, why in self.left.items()]
        table = render(title, ("", "before", "after"), rows)
        return "\n".join([table, str(self.masks), *alone])
