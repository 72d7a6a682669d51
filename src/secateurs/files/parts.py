"""The finished parts of an oracle on disk: one file for each batch and group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..atomic import parse_json, read_text, write_text
from ..errors import FileError
from ..exact.table import Change
from ..gates import deviation
from ..groups import Group, records
from .store import digest, load_tensors, save_tensors, unique_state

_SETTING = "setting.json"
_BASE = "base/"  # and 'loss' or 'metric': those of the uncut network
_ROUNDING = 1e-4  # of the largest value: far more than what other threads or kernels change


class Parts:
    """A folder of parts, which knows for what they were computed.

    Args:
        folder: where; None keeps nothing.
        model, groups: of the oracle.
        told: what else it depends on.
        resume: whether parts may be there already.

    Raises:
        FileError: parts are there and `resume` is not asked for, or they belong to another
            network, loss or metric.
    """

    def __init__(
        self,
        folder: str | Path | None,
        model: nn.Module,
        groups: Sequence[Group],
        told: list[str],
        *,
        resume: bool,
    ):
        self._folder = None if folder is None else Path(folder)
        self._names = [group.name for group in groups]
        if self._folder is None:
            if resume:
                raise FileError("resume=True needs out=, the folder of what is done")
            return
        state = {name: t.detach().cpu().contiguous() for name, t in unique_state(model).items()}
        setting = {"weights": digest(state, {}), "groups": records(groups), "told": told}
        place = self._folder / _SETTING
        if not place.exists():
            write_text(place, json.dumps(setting))
        elif not resume:
            raise FileError(
                f"{self._folder} holds the parts of an oracle; pass resume=True or another folder"
            )
        elif parse_json(read_text(place), str(place)) != json.loads(json.dumps(setting)):
            raise FileError(
                f"{self._folder} holds the parts of an oracle of other weights, groups, loss or "
                "metric; pass another folder"
            )

    def read(self, batch: Any, uncut: Callable[[Any], dict[str, Tensor]]) -> dict[str, Change]:
        """The groups that are done for this batch.

        Args:
            batch: whose parts.
            uncut: batch -> `Change.base`, by which another loss or metric is known.

        Raises:
            FileError: they are of another loss or metric.
        """
        if self._folder is None:
            return {}
        found = {}
        for name in self._names:
            place = self._place(batch, name)
            if place.exists():
                tensors, told = load_tensors(place)
                base = {k.removeprefix(_BASE): t for k, t in tensors.items() if k.startswith(_BASE)}
                loss, metric = tensors["loss"], tensors.get("metric")
                found[name] = Change(loss, metric, told["how"], told["why"], base)
        if found:
            now = uncut(batch)
            for change in found.values():
                self._check(change.base, now)
        return found

    def _check(self, kept: dict[str, Tensor], now: dict[str, Tensor]) -> None:
        """Whether the uncut network has the loss and the metric that it had."""
        for what, value in now.items():
            same = what in kept and kept[what].shape == value.shape
            if not same or not deviation([value], [kept[what]])[1] <= _ROUNDING:
                raise FileError(
                    f"{self._folder} holds the parts of an oracle of another {what}: that of the "
                    "uncut network is not what it was; pass another folder"
                )

    def write(self, batch: Any, name: str, change: Change) -> None:
        """Keep what was found for one group on this batch."""
        if self._folder is None:
            return
        tensors = {"loss": change.loss}
        if change.metric is not None:
            tensors["metric"] = change.metric
        tensors |= {_BASE + what: value.clone() for what, value in change.base.items()}
        save_tensors(self._place(batch, name), tensors, {"how": change.how, "why": change.why})

    def _place(self, batch: Any, name: str) -> Path:
        folder = self._folder or Path()
        return folder / f"{_fingerprint(batch)[:16]}-{self._names.index(name):04d}.safetensors"


def _fingerprint(batch: Any) -> str:
    """What a batch holds, in a few digits."""
    leaves, spec = pytree.tree_flatten(batch)
    tensors = {str(i): leaf.cpu() for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    rest = [repr(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]
    told = {"spec": str(spec), "rest": json.dumps(rest)}
    return hashlib.sha256(digest(tensors, told).encode()).hexdigest()
