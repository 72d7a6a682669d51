"""Secateurs cuts what a trained neural network does not need, and proves that the cut is clean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .files.exported import Exported
from .files.pt2 import export_pt2
from .files.store import load, save
from .files.to_onnx import export_onnx
from .gates import Proof, trace, verify
from .groups import Frozen, Graph, Group
from .oracle import oracle
from .oracle_result import Oracle
from .plan import Plan
from .score import score
from .scores import Scores
from .surgery.apply import apply
from .surgery.delete import delete_channels
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .process.greedy import prune
    from .process.result import PruneResult

__all__ = [
    "Exported",
    "Frozen",
    "Graph",
    "Group",
    "Oracle",
    "Plan",
    "Proof",
    "PruneResult",
    "Scores",
    "apply",
    "delete_channels",
    "export_onnx",
    "export_pt2",
    "load",
    "oracle",
    "prune",
    "save",
    "score",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    # the loop brings Accelerate, Pydantic and Rich along; they load when it is first used
    if name == "prune":
        from .process.greedy import prune

        return prune
    if name == "PruneResult":
        from .process.result import PruneResult

        return PruneResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
