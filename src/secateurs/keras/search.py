"""What the configuration of a layer must become for it to have weights of other shapes.

No layer class is known here. Every whole number in a configuration that equals a size which the
cut changes may be that size, and a shape that was left to be found may have to be said; the fewest
changes that give a layer with weights of the wanted shapes are taken.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import Any, TypeAlias

Key: TypeAlias = tuple[Any, ...]  # the keys and positions that lead to a number

_NO_SIZES = frozenset({"seed", "name", "build_config", "registered_name", "dtype"})


def edited(
    config: Mapping[str, Any],
    known: Mapping[Key, int],
    changes: Iterable[tuple[int | None, int]],
) -> Iterator[dict[str, Any]]:
    """The configurations to try, the one with the fewest changes first.

    Args:
        config: of the layer as it is.
        known: what is known of the new one.
        changes: (before, after) of sizes, the likelier ones first; a shape that was left to be
            found is None before.
    """
    after: dict[int | None, list[int]] = {}
    for old, new in dict.fromkeys(changes):
        if old != new:
            after.setdefault(old, []).append(new)
    places = [(key, n) for key, n in numbers(config) if n in after and key not in known]
    for count in range(len(places) + 1):
        for chosen in combinations(places, count):
            for values in product(*(after[n] for _, n in chosen)):
                keys = (key for key, _ in chosen)
                yield _with(config, {**known, **dict(zip(keys, values, strict=True))})


def numbers(config: Any, key: Key = ()) -> Iterator[tuple[Key, int | None]]:
    """Every whole number in a configuration, and where it stands; None is a shape left out.

    >>> list(numbers({"units": 8, "use_bias": True, "layer": {"config": {"shape": (2, 3)}}}))
    [(('units',), 8), (('layer', 'config', 'shape', 0), 2), (('layer', 'config', 'shape', 1), 3)]
    """
    if type(config) is int or (config is None and str(key[-1]).endswith("shape")):
        yield key, config
    elif isinstance(config, Mapping):
        for name, value in config.items():
            if name not in _NO_SIZES:
                yield from numbers(value, (*key, name))
    elif isinstance(config, (list, tuple)):
        for i, value in enumerate(config):
            yield from numbers(value, (*key, i))


def _with(config: Mapping[str, Any], values: Mapping[Key, int]) -> dict[str, Any]:
    """A copy of a configuration with other numbers at these places."""
    out = _unbuilt(config)
    for key, value in values.items():
        out = _put(out, key, value)
    return out


def _unbuilt(config: Any) -> Any:
    """A copy in which layers inside are not built for the shapes that they had."""
    if isinstance(config, Mapping):
        return {k: _unbuilt(value) for k, value in config.items() if k != "build_config"}
    if isinstance(config, (list, tuple)):
        return type(config)(map(_unbuilt, config))
    return copy.deepcopy(config)


def _put(config: Any, key: Key, value: int) -> Any:
    if not key:
        return value
    if isinstance(config, tuple):
        items = list(config)
        items[key[0]] = _put(items[key[0]], key[1:], value)
        return tuple(items)
    config[key[0]] = _put(config[key[0]], key[1:], value)
    return config


def located(config: Mapping[str, Any], attributes: Mapping[str, tuple[int, int]]) -> dict[Key, int]:
    """What a plan says of a layer's attributes, as places in its configuration.

    >>> located({"target_shape": (4, 8)}, {"target_shape[1]": (8, 6), "_private": (8, 6)})
    {('target_shape', 1): 6}
    """
    held = dict(numbers(config))
    out = {}
    for name, (old, new) in attributes.items():
        key: list[Any] = []
        for part in name.split("."):
            attribute, bracket, item = part.partition("[")
            key += ["config", attribute] if key else [attribute]
            key += [int(item[:-1])] if bracket else []
        if held.get(tuple(key)) == old:
            out[tuple(key)] = new
    return out
