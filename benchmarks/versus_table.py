"""The page of the comparison with Torch-Pruning, from the records of its runs."""
from __future__ import annotations
import json
def document(records): return ""
