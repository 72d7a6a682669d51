"""A comparison as it was recorded: read, summarised, drawn; no model is needed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..atomic import check_file
from ..errors import FileError
from .recommend import Recommendation, recommend
from .record import (
    FORMS,
    Experiment,
    OracleLine,
    PruneLine,
    ScoresLine,
    SensitivityLine,
    Setting,
    Values,
)
from .statistics import Bootstrap, Correlation, correlate

Against = Literal["abs", "loss", "metric"]
T = TypeVar("T")
EXPERIMENT: TypeAdapter[Experiment] = TypeAdapter(Experiment)


@dataclass(frozen=True)
class Point:
    """The metric of one criterion at one budget: one value for each seed."""

    budget: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None of one."""
        n, mean = len(self.values), self.mean
        return (
            math.sqrt(sum((v - mean) * (v - mean) for v in self.values) / (n - 1))
            if n > 1
            else None
        )


@dataclass(frozen=True)
class Curve:
    """Metric against budget, from the largest network to the smallest."""

    form: str
    criterion: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Metric against the fraction of one group that is removed, the uncut network first."""

    group: str
    criterion: str
    points: tuple[tuple[float, float], ...]


@dataclass
class Comparison:
    """What was compared, and every experiment.

    Attributes:
        setting: the network, the data, the budgets.
        lines: one experiment each; of two that repeat one, the later counts.
    """

    setting: Setting
    lines: list[Experiment]
    _found: dict[Against, list[Correlation]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __str__(self) -> str:
        from ..report.comparison_page import summary

        return summary(self)

    def report(self, path: str | Path = "comparison.html") -> Path:
        """Write one self-contained HTML page; needs `secateurs[report]`.

        Raises:
            MissingExtraError: jinja2 or matplotlib is not installed.
        """
        from ..report.comparison_page import write_comparison

        return write_comparison(self, path)

    def figures(self, directory: str | Path) -> list[Path]:
        """Write the page's pictures as SVG and PNG; needs `secateurs[report]`.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from ..report.comparison_page import write_comparison_figures

        return write_comparison_figures(self, directory)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read JSON lines; a last line that was cut short in writing is left out.

        Raises:
            FileError: the file is missing, foreign or corrupt; names the line.
        """
        *whole, last = _read(path).split(b"\n")
        lines = [(number, line) for number, line in enumerate(whole, 1) if line.strip()]
        if last.strip() and _is_whole(last):
            lines.append((len(whole) + 1, last))
        if not lines:
            raise FileError(f"{path} holds no comparison: it is empty")
        (first, text), *rest = lines
        setting = _parse(TypeAdapter(Setting), text, f"{path}, line {first}")
        out: list[Experiment] = []
        for number, text in rest:
            line = _parse(EXPERIMENT, text, f"{path}, line {number}")
            _check(line, setting, f"{path}, line {number}")
            out.append(line)
        return cls(setting, out)

    @property
    def oracle(self) -> OracleLine | None:
        """The oracle, if it was computed."""
        return next((x for x in reversed(self.lines) if isinstance(x, OracleLine)), None)

    def scores(self, criterion: str) -> list[ScoresLine]:
        """The scores of a criterion, one line a seed."""
        found = {
            x.seed: x for x in self.lines if isinstance(x, ScoresLine) and x.criterion == criterion
        }
        return [found[seed] for seed in sorted(found)]

    def refused(self) -> dict[str, str]:
        """Criterion -> why it does not apply to this network."""
        lines = (x for name in self.criteria for x in self.scores(name))
        return {line.criterion: line.refused for line in lines if line.refused}

    @property
    def criteria(self) -> list[str]:
        """Those of the setting, and any other that has a line."""
        seen = dict.fromkeys(self.setting.criteria)
        seen |= dict.fromkeys(x.criterion for x in self.lines if not isinstance(x, OracleLine))
        return list(seen)

    def correlations(self, against: Against = "abs") -> list[Correlation]:
        """Each criterion's rank correlation with the oracle; empty without one.

        Args:
            against: 'abs' `|ΔC|`, as in Molchanov et al. 2016; 'loss' ΔC with its sign; 'metric'
                how much worse the metric becomes.
        """
        if against not in self._found:
            self._found[against] = list(self._correlate(against))
        return self._found[against]

    def _correlate(self, against: Against) -> Iterator[Correlation]:
        truth = self._truth(against)
        if not truth:
            return
        bootstrap = Bootstrap()
        for name in self.criteria:
            values = [line.values for line in self.scores(name) if not line.refused]
            if values:
                yield correlate(name, values, truth, bootstrap)

    def _truth(self, against: Against) -> Values:
        """The oracle as importance: higher = keep."""
        if self.oracle is None:
            return {}
        if against == "metric":
            sign = -1 if self.setting.mode == "max" else 1
            return {name: [sign * v for v in own] for name, own in self.oracle.metric.items()}
        if against == "abs":
            return {name: [abs(v) for v in own] for name, own in self.oracle.loss.items()}
        return self.oracle.loss

    def curves(self) -> list[Curve]:
        """Metric against budget: one curve for each form and criterion."""
        cells: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
        for line in self.lines:
            if isinstance(line, PruneLine):
                own = cells.setdefault((line.form, line.criterion), defaultdict(dict))
                own[line.budget][line.seed] = line.metric
        order = {name: i for i, name in enumerate(self.criteria)}
        return [
            Curve(
                form,
                name,
                tuple(
                    Point(budget, tuple(own[budget][seed] for seed in sorted(own[budget])))
                    for budget in sorted(own, reverse=True)
                ),
            )
            for (form, name), own in sorted(
                cells.items(), key=lambda item: (FORMS.index(item[0][0]), order[item[0][1]])
            )
        ]

    def seconds(self) -> dict[str, float]:
        """Criterion -> what its scores took, the mean over seeds."""
        found = {name: [line.price.seconds for line in self.scores(name)] for name in self.criteria}
        return {name: sum(own) / len(own) for name, own in found.items() if own}

    @property
    def recommendation(self) -> Recommendation:
        """Which criterion to use, why, and how sure that is."""
        runs = {
            (x.form, x.criterion, x.budget, x.seed): x
            for x in self.lines
            if isinstance(x, PruneLine)
        }
        return recommend(
            self.setting,
            list(runs.values()),
            self.correlations(),
            self.refused(),
            self.seconds(),
        )

    def sensitivities(self) -> list[Sensitivity]:
        """Metric against the fraction removed, for each group in the order of the network."""
        found: dict[tuple[str, str], dict[float, float]] = {}
        for line in self.lines:
            if isinstance(line, SensitivityLine):
                found.setdefault((line.group, line.criterion), {})[line.removed] = line.metric
        uncut = {} if self.setting.metric is None else {0.0: self.setting.metric}
        order = {group.name: i for i, group in enumerate(self.setting.groups)}
        return [
            Sensitivity(group, criterion, tuple(sorted({**uncut, **own}.items())))
            for (group, criterion), own in sorted(found.items(), key=lambda x: order[x[0][0]])
        ]


# ---------------------------------------------------------------------- reading
def _read(path: str | Path) -> bytes:
    try:
        return check_file(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error


def _is_whole(line: bytes) -> bool:
    try:
        EXPERIMENT.validate_json(line)
    except ValidationError:
        return False
    return True


def _parse(kind: TypeAdapter[T], text: bytes, where: str) -> T:
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        what = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the line'}: {e['msg']}" for e in error.errors()[:3]
        )
        raise FileError(f"{where} is not a comparison of this version: {what}") from error


def _check(line: Experiment, setting: Setting, where: str) -> None:
    """Refuse values of another network.

    Raises:
        FileError: names the line and the group.
    """
    sizes = {group.name: group.size for group in setting.groups}
    named: list[Values] = []
    if isinstance(line, OracleLine):
        named = [line.loss, line.error, line.metric]
    elif isinstance(line, ScoresLine):
        named = [line.values]
    elif isinstance(line, SensitivityLine) and line.group not in sizes:
        raise FileError(f"{where}: the network of the first line has no group {line.group!r}")
    for values in named:
        for name, own in values.items():
            if sizes.get(name) != len(own):
                raise FileError(
                    f"{where}: {len(own)} values for group {name!r}, which has "
                    f"{sizes.get(name, 'no')} units in the first line"
                )
