"""What a pruning run gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ExportError
from ..files.store import MODEL_ONNX, save
from ..files.to_onnx import export_onnx
from ..gates import Proof
from ..latency import Latency
from ..plan import Plan
from ..report.record import Network, Origin, Record, Run, Scored, Step
from ..scores import Scores
from ..tables import render
from .describe import size_in_bytes


@dataclass
class PruneResult:
    """A pruned network and how it came about.

    Attributes:
        model: the pruned model.
        plan: everything that was removed, from the original model.
        history: one record per step: `removed` (group -> units), what is left (`macs`, `params`,
            `units`), mean training `loss`, `metric`, and `seconds`.
        scores: the last scores that units were chosen by; None if nothing was removed.
        proof: the law of the cut for the whole plan, on the original model's weights.
        before, after: macs (of one run on the example inputs), params and units.
        stopped: why the loop ended: the 'budget' is met, the metric fell below the 'floor', a loss
            was 'nan', it was 'interrupted', or 'exhausted': nothing more may be removed.
        settings: what the run was started with.
        network: what the trace found in the original model: groups, layers, frozen axes.
        origin: versions, device, command; where the run was made.
        importance: group -> (steps, units), what each removal was chosen by; NaN for what was gone.
        example_inputs: what the model was traced with; an export needs them.
        latency: what was timed -> before and after; more may be added before a report is made.
    """

    model: nn.Module
    plan: Plan
    history: list[dict[str, Any]]
    scores: Scores | None
    proof: Proof
    before: dict[str, int]
    after: dict[str, int]
    stopped: str
    settings: dict[str, Any]
    network: Network
    origin: Origin
    importance: Scored
    example_inputs: Any = field(repr=False)
    latency: dict[str, tuple[Latency, Latency]] = field(default_factory=dict)

    def save(
        self,
        directory: str | Path,
        *,
        onnx: bool = False,
        sparse: bool = False,
        values: str = "exact",
    ) -> Path:
        """Write weights, plan, history and record.

        `secateurs.load` reads the network back, `secateurs report` the rest.

        Args:
            directory: made if it is not there; files of these names in it are replaced.
            onnx: write `model.onnx` too; see `secateurs.export_onnx`.
            sparse, values: as for `secateurs.save`.

        Returns:
            The directory.

        Raises:
            ConfigError: `values` is none that `secateurs.save` knows.
            OSError: a file cannot be written; the old one stays.
            ExportError: the ONNX file cannot be written; weights, plan and history are.
        """
        path = self._write(Path(directory), sparse=sparse, values=values)
        self.record().save(path)
        if onnx:
            if self.example_inputs is None:
                raise ExportError(
                    "this result knows no example inputs to export with; call "
                    "sc.export_onnx(result.model, example_inputs, path)"
                )
            export_onnx(self.model, self.example_inputs, path / MODEL_ONNX)
        return path

    def _write(self, directory: Path, **options: Any) -> Path:
        """Write weights, plan and history."""
        return save(self.model, self.plan, directory, history=self.history, **options)

    def _bytes(self) -> int:
        """What the weights take."""
        return size_in_bytes(self.model)

    def report(self, path: str | Path = "report.html") -> Path:
        """Write one self-contained HTML page on the run; needs `secateurs[report]`."""
        from ..report.page import write_page

        return write_page(self.record(), path)

    def plot(self, directory: str | Path) -> list[Path]:
        """Write the report's pictures as SVG and PNG; needs `secateurs[report]`."""
        from ..report.figures import write_figures

        return write_figures(self.record(), directory)

    def record(self) -> Record:
        """The run as plain data, from which reports are made; `print` shows it as text."""
        options = dict(self.settings)
        facts = {name: options.pop(name) for name in ("targets", "criterion", "metric", "mode")}
        run = Run.model_validate(
            {
                "format": "secateurs.record/1",
                "network": self.network,
                "before": {**self.before, "bytes": self.network.bytes},
                "after": {**self.after, "bytes": self._bytes()},
                "proof": asdict(self.proof),
                "latency": {
                    name: tuple(asdict(side) for side in sides)
                    for name, sides in self.latency.items()
                },
                **facts,
                "stopped": self.stopped,
                "options": options,
                "origin": self.origin,
            }
        )
        history = [Step.model_validate(record) for record in self.history]
        return Record(run, self.plan, history, self.importance)

    def __str__(self) -> str:
        rows = [
            (name, f"{old:,}", f"{self.after[name]:,}", f"{self.after[name] / old:.1%}")
            for name, old in self.before.items()
        ]
        metric = self.settings.get("metric", "metric")
        values = [record.get("metric") for record in self.history]
        if values and values[0] is not None:
            rows.append((metric, f"{values[0]:.4f}", f"{values[-1]:.4f}", ""))
        table = render(
            f"pruned in {len(self.plan.groups)} groups; stopped: {self.stopped}",
            ("", "before", "after", "kept"),
            rows,
        )
        left = {} if self.scores is None else self.scores.unscored
        alone = [f"left alone: {name}: {why}" for name, why in left.items()]
        return "\n".join([table, *alone, str(self.proof)])
