"""Live progress of a run: what was removed, the budget left, the time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Meter:
    """A line a step, a bar for the way to the budget, and one for the updates of a phase.

    The bars are for a terminal, and not for beside another's; the lines are written to a file or a
    pipe too.
    """

    def __init__(self, shown: bool, way: str = "to the budget", *, bars: bool = True):
        self.console = Console(stderr=True, quiet=not shown)
        self.bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and bars and self.console.is_terminal),
        )
        self._way = self.bars.add_task(way, total=1.0)
        self._phase = self.bars.add_task("", total=1, visible=False)
        self._told = ""

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
        self.bars.update(self._way, completed=min(done, 1.0))
        if note != self._told:
            self._told = note
            self.console.print(note, markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str, total: int) -> None:
        self.bars.reset(self._phase, total=total, description=name, visible=total > 0)

    def advance(self) -> None:
        self.bars.advance(self._phase)
