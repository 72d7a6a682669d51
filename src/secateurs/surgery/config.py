"""Mend the configuration that a cut model would be built from again.

Some libraries (Hugging Face transformers for one) build a model as `type(model)(model.config)`, and
save the configuration with the weights. After a cut the configuration must say the new sizes. Which
fields those are is searched for and proved: the model that is built from the mended configuration
has the shapes, the numbers and the mended attributes of the cut one. It is built on the meta
device, so that this takes no memory.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import nn

from ..plan import Plan
from ..trace.model import model_tensors, modules_of, own_attributes

Field: TypeAlias = tuple[str | int, ...]  # ('vision_config', 'num_heads', 0)
Change: TypeAlias = tuple[Field, int]
Sizes: TypeAlias = set[tuple[int, int]]

_FAR = (1 << 30, 0)
_BUILDS = 100  # models built at most in search of a configuration


def mend_config(model: nn.Module, plan: Plan) -> None:
    """Give a cut model a configuration that says what it is; nothing if it has none.

    Args:
        model: the cut model; its configuration is replaced, not changed.
        plan: what was cut.

    Warns:
        UserWarning: no configuration describes the model; it is left as it was.
    """
    config, sizes = model.__dict__.get("config"), plan.changed_sizes()
    if not sizes or not _is_config(config) or not callable(getattr(model, "save_pretrained", None)):
        return
    search = _Search(model, config, frozenset(plan.attributes))
    other = plan.replay or plan.edits  # code that no configuration makes
    found = None if other else search.best(_candidates(model, config, sizes))
    anew = [*search.numbers(), *_unsaved(model, plan)]
    if found is None or anew:
        more = f" and {len(anew) - 2} more" if len(anew) > 2 else ""
        why = (
            f"a model built from it would compute {', '.join(anew[:2])}{more} anew, for other sizes"
            if anew
            else "its widths differ between layers, no field stands for them, it refuses them, or "
            "the cut is served by other code than that of its class"
        )
        warnings.warn(
            f"the config of {type(model).__name__} cannot say what was cut: {why}; from_pretrained "
            "would not take what save_pretrained writes, or make another function of it, so keep "
            "the model with secateurs.save, whose plan.json makes the cut again on the original",
            stacklevel=3,
        )
    elif found:
        _replace(model, found)


def _unsaved(model: nn.Module, plan: Plan) -> list[str]:
    """The buffers that were cut and that no file holds: a model computes them as it is built."""
    saved = model.state_dict(keep_vars=True)
    return [name for name in plan.tensors if name not in saved]


def _is_config(value: object) -> bool:
    return callable(getattr(value, "to_dict", None)) and not isinstance(value, nn.Module)


def _fields(value: Any, path: Field = ()) -> Iterator[tuple[Field, int]]:
    """Every integer of a configuration, those of its lists and inner configurations too."""
    if type(value) is int:
        yield path, value
    elif isinstance(value, (list, tuple)):
        for item, inner in enumerate(value):
            yield from _fields(inner, (*path, item))
    elif _is_config(value):
        for name, inner in vars(value).items():
            if not name.startswith("_"):
                yield from _fields(inner, (*path, name))


def _candidates(model: nn.Module, config: Any, sizes: Sizes) -> list[Change]:
    """Fields that hold a size which changed; names that modules read and the config leaves out."""
    found = [(path, new) for path, old in _fields(config) for was, new in sizes if was == old]
    held: dict[str, set[int]] = {}
    for module in model.modules():
        if module.__dict__.get("config") is not None:
            for name, value in own_attributes(module):
                if type(value) is int:
                    held.setdefault(name, set()).add(value)
    for name, values in held.items():
        # a number that differs from layer to layer, such as their index, is no field's
        if len(values) == 1 and min(values) > 1 and getattr(config, name, None) is None:
            found.append(((name,), min(values)))
    return list(dict.fromkeys(found))


def _edited(config: Any, changes: Iterable[Change]) -> Any:
    """A copy of a configuration with other integers."""
    config = copy.deepcopy(config)
    for path, new in changes:
        *outer, last = path
        _set(functools.reduce(_get, outer, config), last, new)
    return config


def _reread(config: Any) -> Any:
    """The configuration as it comes back from a file; whatever its class raises if it is bad."""
    validate = getattr(config, "validate", None)
    if validate is not None:
        validate()
    return type(config).from_dict(config.to_dict())


def _get(value: Any, key: str | int) -> Any:
    return value[key] if isinstance(key, int) else getattr(value, key)


def _set(value: Any, key: str | int, new: int) -> None:
    if isinstance(key, int):
        value[key] = new
    else:
        setattr(value, key, new)


class _Search:
    """Looks for the changes of a configuration that make a model of it be like the cut one."""

    def __init__(self, model: nn.Module, config: Any, changed: frozenset[str]):
        self.build, self.config = type(model), config
        self.wanted, self.changed = _portrait(model), changed
        self.known: dict[frozenset[Change], tuple[int, int]] = {}
        self.nearest: tuple[tuple[int, int], list[str]] = (_FAR, [])

    def distance(self, changes: frozenset[Change]) -> tuple[int, int]:
        """How many tensors and numbers differ, and how many integers that the cut did not touch."""
        if changes not in self.known:
            try:
                with torch.device("meta"), torch.random.fork_rng(devices=[]):
                    found = _portrait(self.build(_reread(_edited(self.config, changes))))
            except Exception:  # noqa: BLE001 - whatever a constructor makes of wrong sizes
                self.known[changes] = _FAR
            else:
                names = dict.fromkeys([*self.wanted, *found])
                differ = [n for n in names if self.wanted.get(n) != found.get(n)]
                loose = sum(
                    type(self.wanted.get(n)) is int and n not in self.changed for n in differ
                )
                self.known[changes] = (len(differ) - loose, loose)
                self.nearest = min(self.nearest, (self.known[changes], differ))
        return self.known[changes]

    def numbers(self) -> list[str]:
        """What alone is wrong in the nearest model: numbers that it computed when it was built."""
        differ = [n for n in self.nearest[1] if type(self.wanted.get(n)) is not int]
        return differ if all(type(self.wanted.get(n)) is float for n in differ) else []

    def best(self, candidates: list[Change]) -> frozenset[Change] | None:
        """The changes after which nothing differs, one or two at a time; None if there are none."""
        chosen: frozenset[Change] = frozenset()
        steps = [frozenset(c) for n in (1, 2) for c in combinations(candidates, n)]
        if self.distance(chosen) == _FAR:
            return None  # its class takes more than a configuration
        while self.distance(chosen)[0]:
            better = (
                new
                for step in steps
                if len(self.known) <= _BUILDS
                and self.distance(new := _with(chosen, step)) < self.distance(chosen)
            )
            found = next(better, None)
            if found is None or len(self.known) > _BUILDS:
                return None
            chosen = found
        return chosen


def _with(chosen: frozenset[Change], step: frozenset[Change]) -> frozenset[Change]:
    """These changes and others, the latter where both change one field."""
    fields = {path for path, _ in step}
    return frozenset(c for c in chosen if c[0] not in fields) | step


def _portrait(model: nn.Module) -> Mapping[str, Any]:
    """The shape of every tensor of a model and every number that its modules hold, by path."""
    out: dict[str, Any] = {name: tuple(t.shape) for name, t in model_tensors(model).items()}
    for path, module in modules_of(model).items():
        for name, value in own_attributes(module):
            if type(value) in (int, float):
                out[f"{path}.{name}" if path else name] = value
    return out


def _replace(model: nn.Module, changes: frozenset[Change]) -> None:
    """Every module gets the mended copy of the configuration that it holds."""
    old = dict(_fields(model.__dict__["config"]))
    made: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        for name, value in own_attributes(module):
            if not _is_config(value):
                continue
            if id(value) not in made:
                own = dict(_fields(value))
                fits = [(p, n) for p, n in changes if own.get(p) == old.get(p)]
                made[id(value)] = (value, _edited(value, fits))
            module.__dict__[name] = made[id(value)][1]
