"""Live progress of a run: what was removed, the budget left, the time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Meter:
    """One bar for the way to the budget, one for the weight updates of a phase."""

    def __init__(self, shown: bool):
        console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._way = self.bars.add_task("to the budget", total=1.0, note="")
        self._phase = self.bars.add_task("", total=1, note="", visible=False)

    def __enter__(self) -> Meter:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def way(self, done: float, note: str) -> None:
        """The fraction of what must go that is gone, and a word on the last step."""
        self.bars.update(self._way, completed=min(done, 1.0), note=note)

    def phase(self, name: str, total: int) -> None:
        self.bars.reset(self._phase, total=total, description=name, visible=total > 0)

    def advance(self) -> None:
        self.bars.advance(self._phase)
