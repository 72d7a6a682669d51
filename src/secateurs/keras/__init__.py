"""The verbs for Keras 3 models, on every backend of Keras.

Nothing here is imported before a Keras model is in hand.
"""

from __future__ import annotations

from .callback import PruneCallback
from .compare import compare, sensitivity
from .cut import apply, delete_channels, trace, verify
from .edit import delete_layer, insert_layer, replace_layer
from .files import save
from .prune import KerasPruneResult, prune
from .scoring import oracle, score
from .sparsify import KerasSparsifyResult, sparsify

__all__ = [
    "KerasPruneResult",
    "KerasSparsifyResult",
    "PruneCallback",
    "apply",
    "compare",
    "delete_channels",
    "delete_layer",
    "insert_layer",
    "oracle",
    "prune",
    "replace_layer",
    "save",
    "score",
    "sensitivity",
    "sparsify",
    "trace",
    "verify",
]
