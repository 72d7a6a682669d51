"""Secateurs cuts what a trained neural network does not need, and proves that the cut is clean."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .files.exported import Exported
from .files.store import load
from .gates import Proof
from .groups import Frozen, Graph, Group
from .oracle_result import Oracle
from .plan import Plan
from .scores import Scores
from .sparse.masks import Masks
from .surgery.replay import Replayed
from .verbs import (
    apply,
    bake,
    delete_channels,
    delete_layer,
    export_onnx,
    export_pt2,
    for_keras_too,
    insert_layer,
    oracle,
    replace_layer,
    save,
    score,
    to_csr,
    trace,
    verify,
)
from .version import __version__ as __version__

# loading a room puts its name here: load it now, and leave the name to the verb
importlib.import_module(".compare", __name__)
del globals()["compare"]

if TYPE_CHECKING:
    from .compare.comparison import Comparison
    from .compare.run import compare, sensitivity
    from .process.greedy import prune
    from .process.result import PruneResult
    from .process.sparsify import sparsify
    from .process.sparsify_result import SparsifyResult
    from .sparse.dead import DeadUnits, dead_units, remove_dead

__all__ = [
    "Comparison",
    "DeadUnits",
    "Exported",
    "Frozen",
    "Graph",
    "Group",
    "Masks",
    "Oracle",
    "Plan",
    "Proof",
    "PruneResult",
    "Replayed",
    "Scores",
    "SparsifyResult",
    "apply",
    "bake",
    "compare",
    "dead_units",
    "delete_channels",
    "delete_layer",
    "export_onnx",
    "export_pt2",
    "insert_layer",
    "load",
    "oracle",
    "prune",
    "remove_dead",
    "replace_layer",
    "save",
    "score",
    "sensitivity",
    "sparsify",
    "to_csr",
    "trace",
    "verify",
]


# these bring Accelerate, Pydantic, Rich or SciPy along; they load when they are first used
_LATER = {
    "Comparison": ".compare.comparison",
    "DeadUnits": ".sparse.dead",
    "PruneResult": ".process.result",
    "SparsifyResult": ".process.sparsify_result",
    "compare": ".compare.run",
    "dead_units": ".sparse.dead",
    "prune": ".process.greedy",
    "remove_dead": ".sparse.dead",
    "sensitivity": ".compare.run",
    "sparsify": ".process.sparsify",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    thing = getattr(importlib.import_module(_LATER[name], __name__), name)
    return thing if isinstance(thing, type) else for_keras_too(thing)
