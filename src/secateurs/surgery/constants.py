"""Whole numbers that are written in the source of a function, by themselves or under a name."""

from __future__ import annotations

import ast
import functools
import operator
from typing import Any

_FOLDED = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def constant(written: ast.expr, tree: ast.FunctionDef | None) -> int | None:
    """The whole number that is written here, or in the one assignment to a name of the function."""
    if isinstance(written, ast.Constant):
        return written.value if type(written.value) is int else None
    if isinstance(written, ast.UnaryOp) and isinstance(written.op, ast.USub):
        number = constant(written.operand, tree)
        return None if number is None else -number
    if isinstance(written, ast.BinOp) and type(written.op) in _FOLDED:
        left, right = constant(written.left, tree), constant(written.right, tree)
        fold: Any = _FOLDED[type(written.op)]
        return None if left is None or right is None else int(fold(left, right))
    if isinstance(written, ast.Name) and tree is not None:
        assigned = _assigned(written.id, tree)
        return None if assigned is None else constant(assigned, None)
    return None


@functools.lru_cache(maxsize=1024)
def _assigned(name: str, tree: ast.FunctionDef) -> ast.expr | None:
    """What a local name is, if it is assigned once and bound in no other way."""
    values = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            values += [v for t, v in pairs if isinstance(t, ast.Name) and t.id == name]
    return values[0] if len(values) == 1 == _bindings(name, tree) else None


def _bindings(name: str, tree: ast.FunctionDef) -> int:
    """How often a function binds a name, in whatever way; declarations of its scope count too."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            count += node.id == name and not isinstance(node.ctx, ast.Load)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            count += name in node.names
        elif not isinstance(node, (ast.keyword, ast.Attribute)):
            bound = (getattr(node, field, None) for field in ("name", "asname", "arg", "rest"))
            count += name in bound
    return count
