"""The options of a comparison, with the same names in Python and in a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError, nearest
from ..process.options import Ranking, validated
from .record import FORMS, Form

Fraction = Annotated[float, Field(gt=0, lt=1)]


class CompareOptions(Ranking):
    """How `compare` works; the defaults are those of the preset 'quick'.

    >>> CompareOptions().seeds, compare_options("full", {}).seeds
    ((0, 1), (0, 1, 2))
    """

    budgets: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5, 0.2)
    """The fractions to keep."""
    measure: Literal["macs", "params", "units"] = "macs"
    """What the budgets are fractions of."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 62)], ...], Field(min_length=1)] = (
        0,
        1,
    )
    """Each draws other data to score and to fine-tune with, and other random importance."""
    forms: tuple[Form, ...] = ("one-shot", "fine-tuned")
    """One-shot: cut, and no more. Fine-tuned: then all updates. Iterative: cut in rounds, with
    the same updates spread over them."""
    oracle: bool = True
    """Compute the oracle, and how well each criterion agrees with it."""
    examples: Annotated[int, Field(ge=1)] = 1024
    """Examples that the oracle and the scores are taken over; whole batches, one epoch at most."""
    updates: Annotated[int, Field(ge=0)] = 100
    """Weight updates of every network that is fine-tuned, the same for each criterion."""
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Learning rate of the default optimizer, SGD with momentum 0.9."""
    rounds: Annotated[int, Field(ge=1)] = 5
    """A removal of the iterative form takes the units of the network divided by this."""
    score_batches: Annotated[int, Field(ge=1)] = 4
    """Batches that each ranking of the iterative form is made from."""
    sensitivity: tuple[Fraction, ...] = (0.25, 0.5, 0.75)
    """Fractions of the units of one group that are removed, to see what it can bear."""
    shard: Annotated[int, Field(ge=1)] = 16
    """Batches of one job of the oracle or of a score; more are split, and merged afterwards."""


FULL: Mapping[str, Any] = {
    "budgets": (0.75, 0.5, 0.25, 0.1),
    "seeds": (0, 1, 2),
    "examples": 4096,
    "forms": FORMS,
    "updates": 1000,
    "rounds": 10,
    "score_batches": 10,
    "sensitivity": (0.1, 0.25, 0.5, 0.75, 0.9),
}
PRESETS: Mapping[str, Mapping[str, Any]] = {"quick": {}, "full": FULL}


def compare_options(preset: str, values: Mapping[str, Any]) -> CompareOptions:
    """A preset, and what replaces some of it.

    Raises:
        ConfigError: no such preset, or names the option, what it was given, and what is allowed.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset is called {preset!r}{nearest(str(preset), PRESETS)}")
    return validated(CompareOptions, {**PRESETS[preset], **values})
