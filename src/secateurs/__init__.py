"""Secateurs cuts what a trained neural network does not need, and proves that the cut is clean."""

from .gates import Proof, trace, verify
from .groups import Frozen, Graph, Group
from .plan import Plan
from .score import Scores, score
from .surgery.apply import apply
from .surgery.delete import delete_channels

__version__ = "0.1.0"
__all__ = [
    "Frozen",
    "Graph",
    "Group",
    "Plan",
    "Proof",
    "Scores",
    "apply",
    "delete_channels",
    "score",
    "trace",
    "verify",
]
