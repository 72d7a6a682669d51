"""The JSON form of a plan, checked strictly."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import FileError
from .plan import Plan
from .slices import Slices
from .surgery.edits import Edit
from .surgery.fold import Scale
from .surgery.restate import Restated

Index = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dim = Annotated[str, Field(pattern=r"^\d{1,2}$")]
AttributeName = Annotated[str, Field(pattern=r"^([^\[\]]+\.)?\w+(\[\w{1,64}\])?$")]
_STRICT = ConfigDict(strict=True, extra="forbid")


class SlicesSchema(BaseModel):
    """What one tensor loses."""

    model_config = _STRICT

    shape: list[Index]
    removed: dict[Dim, list[list[Index]]]


class PlanSchema(BaseModel):
    """A plan."""

    model_config = _STRICT

    format: Literal["secateurs.plan/1"]
    groups: dict[str, list[Index]]
    sizes: dict[str, Size]
    exact: bool
    tensors: dict[str, SlicesSchema]
    attributes: dict[AttributeName, tuple[Size, Index]]  # a bound may become 0
    scales: list[tuple[str, Index, list[Index], Factor]] = []
    edits: list[tuple[str, str, str, Index, Index, int, str]] = []
    restated: list[tuple[str, str, Size, Index, int, Index]] = []
    replay: bool = False


def read(data: Any) -> Plan:
    """See `Plan.from_dict`."""
    parsed = _parse(data)
    plan = Plan(
        parsed.groups,
        parsed.sizes,
        {
            name: Slices(tuple(entry.shape), {int(d): b for d, b in entry.removed.items()})
            for name, entry in parsed.tensors.items()
        },
        parsed.attributes,
        parsed.exact,
        tuple(Scale(*item) for item in parsed.scales),
        tuple(Restated(*item) for item in parsed.restated),
        tuple(Edit(*item) for item in parsed.edits),
        parsed.replay,
    )
    _check_indices(plan)
    return plan


def _parse(data: Any) -> PlanSchema:
    """Plain data of the form of a plan.

    Raises:
        FileError: it is something else, and where.
    """
    kind = data.get("format") if isinstance(data, dict) else None
    if kind != "secateurs.plan/1":
        raise FileError(f"this is not a plan of this version: its format is {kind!r}")
    try:
        return PlanSchema.model_validate_json(json.dumps(data))
    except (ValidationError, TypeError, ValueError, RecursionError) as error:
        errors = error.errors()[:3] if isinstance(error, ValidationError) else []
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors)
        raise FileError(f"the plan is malformed: {where or error}") from error


def _check_indices(plan: Plan) -> None:
    """Refuse indices that no axis has, or that disagree."""
    for name, slices in plan.tensors.items():
        for dim, blocks in slices.removed.items():
            size = slices.shape[dim] if 0 <= dim < len(slices.shape) else -1
            good = bool(blocks) and all(
                len(set(block)) == len(block) == len(blocks[0]) < size
                and all(0 <= i < size for i in block)
                for block in blocks
            )
            if not good or (len(blocks) > 1 and slices.shape[0] % len(blocks)):
                raise FileError(f"the plan is malformed: bad indices for {name!r} dim {dim}")
    for scale in plan.scales:
        own = plan.tensors.get(scale.tensor)
        size = own.shape[scale.dim] if own and scale.dim < len(own.shape) else -1
        if not all(0 <= i < size for i in scale.indices):
            raise FileError(f"the plan is malformed: bad rows to scale of {scale.tensor!r}")
    most = sum(s.axis(d)[0] for s in plan.tensors.values() for d in s.removed)  # units of all
    for name, indices in plan.groups.items():
        size = plan.sizes.get(name, -1)
        if size > most:
            raise FileError(f"the plan is malformed: no axes hold {size} units of {name!r}")
        if len(set(indices)) != len(indices) or not all(0 <= i < size for i in indices):
            raise FileError(f"the plan is malformed: bad units for group {name!r}")
    if bool(plan.groups) != bool(plan.tensors):
        raise FileError("the plan is malformed: its groups and its tensors do not agree")
