"""The records of a comparison: JSON lines, the setting first and then one experiment a line.

A line is written whole when its experiment ends, so that a comparison which is stopped, or whose
worker dies, goes on with the experiments that are missing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Count = Annotated[int, Field(ge=0, lt=2**63)]
Values = dict[str, list[float]]
Form = Literal["one-shot", "fine-tuned", "iterative"]
FORMS: tuple[Form, ...] = ("one-shot", "fine-tuned", "iterative")


class Line(BaseModel):
    """One line; an unknown key or a wrong type is an error."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants"
    )


class Group(Line):
    """A group of the network: what deleting one of its units saves is in MACs of one example."""

    name: str
    kind: str
    size: Count
    macs_per_unit: float


class Setting(Line):
    """What is compared, on what.

    Attributes:
        network: name of its class.
        size: macs (of one example), params and units.
        groups: in the order of the network.
        loss: the mean loss of the uncut network on the data of the oracle.
        metric_name, mode: what `evaluate` gives, and whether 'max' or 'min' of it is better.
        metric: of the uncut network; None without `evaluate`.
        measure: what the budgets are fractions of: 'macs', 'params' or 'units'.
        updates: of the fine-tuning of each experiment; 0 without it.
        normalize, flops_weight, cost_power: how scores are made comparable over layers when
            pruning.
        machine: processor, threads, versions.
        weights, data: digests of the network's weights and of the data that scores are taken over.
        options: all of them; see `secateurs.compare.options.CompareOptions`.
    """

    kind: Literal["setting"] = "setting"
    network: str
    size: dict[str, Count]
    groups: list[Group]
    loss: float
    metric_name: str
    mode: Literal["max", "min"]
    metric: float | None
    criteria: list[str]
    measure: Literal["macs", "params", "units"]
    budgets: list[float]
    seeds: list[int]
    updates: Count
    examples: Count
    normalize: str
    flops_weight: float
    cost_power: float
    machine: dict[str, str]
    weights: str = ""
    data: str = ""
    options: dict[str, JsonValue] = {}


class Price(Line):
    """What an experiment took: seconds, and the most memory above what there was before it."""

    seconds: float
    peak_bytes: Count | None


class OracleLine(Line):
    """C(g_i = 0) − C(1) of every unit, signed, in the mean loss and in the metric.

    Attributes:
        loss: group -> one number per unit.
        error: group -> their standard errors, where the examples are a sample.
        metric: group -> the change of the metric; empty without one.
    """

    kind: Literal["oracle"] = "oracle"
    loss: Values
    error: Values = {}
    metric: Values = {}
    examples: Count
    price: Price


class ScoresLine(Line):
    """The raw scores of one criterion; `refused` says why it does not apply to this network."""

    kind: Literal["scores"] = "scores"
    criterion: str
    seed: int
    values: Values = {}
    refused: str = ""
    price: Price


class PruneLine(Line):
    """One pruned network.

    Attributes:
        form: 'one-shot' (no fine-tuning), 'fine-tuned' (one-shot, then all updates), 'iterative'
            (the same updates spread over the removals).
        budget: the fraction of the measure to keep.
        size: macs, params and units that are left.
        loss: mean loss of the network on the data of the oracle.
        metric: what `evaluate` gives.
    """

    kind: Literal["prune"] = "prune"
    criterion: str
    form: Form
    budget: float
    seed: int
    size: dict[str, Count]
    loss: float | None
    metric: float
    price: Price


class SensitivityLine(Line):
    """The metric after a fraction of one group's least important units is removed."""

    kind: Literal["sensitivity"] = "sensitivity"
    criterion: str
    group: str
    removed: Annotated[float, Field(ge=0, le=1)]
    loss: float | None
    metric: float
    price: Price


Experiment = Annotated[
    OracleLine | ScoresLine | PruneLine | SensitivityLine, Field(discriminator="kind")
]
