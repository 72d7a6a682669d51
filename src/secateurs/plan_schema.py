"""The JSON form of a plan, checked strictly."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import FileError

Index = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dim = Annotated[str, Field(pattern=r"^\d{1,2}$")]
AttributeName = Annotated[str, Field(pattern=r"^([^\[\]]+\.)?\w+(\[\d{1,4}\])?$")]
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
    restated: list[tuple[str, str, Size, Index, int]] = []
    replay: bool = False


def parse(data: Any) -> PlanSchema:
    """Plain data as a plan.

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
