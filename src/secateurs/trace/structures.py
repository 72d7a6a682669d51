"""Dataclasses among a model's inputs and outputs, made known to PyTorch's trees."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.utils import _pytree as pytree


def open_dataclasses(tree: Any) -> None:
    """Let PyTorch look into every dataclass that is met in a structure, as it does into a dict."""
    for leaf in pytree.tree_leaves(tree):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            _register(type(leaf))
            open_dataclasses(leaf)


def _register(kind: type[Any]) -> None:
    if kind in pytree.SUPPORTED_NODES:
        return
    names = [field.name for field in dataclasses.fields(kind)]

    def flatten(value: Any) -> tuple[list[Any], None]:
        return [getattr(value, name) for name in names], None

    def unflatten(values: Any, _: None) -> Any:
        value = object.__new__(kind)
        for name, item in zip(names, values, strict=True):
            object.__setattr__(value, name, item)  # it may be frozen
        return value

    pytree.register_pytree_node(kind, flatten, unflatten)
