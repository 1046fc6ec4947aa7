"""Draw a progress bar on stderr, with rich."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _RateColumn(ProgressColumn):
    """Show how many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


class Bar:
    """Show one bar until it is closed; nothing of it stays."""

    def __init__(self, noun: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{noun}s", markup=False),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        # Nothing is redirected: what goes to stdout may go into a file.
        console = Console(stderr=True, highlight=False)
        self._bars = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task = self._bars.add_task("", total=None)

    def show(self, doing: str, done: int, total: int | None) -> None:
        """Move the bar; of new work, which may be less or shorter, it begins anew."""
        task = self._bars.tasks[0]
        if done < task.completed or doing != task.description:
            self._bars.reset(self._task, total=total, completed=done, description=doing)
        self._bars.update(self._task, completed=done, total=total, description=doing)
        self._bars.start()

    def above(self, text: str) -> None:
        """Print lines above the bar."""
        self._bars.console.out(text, highlight=False)

    def close(self) -> None:
        """Take it away."""
        self._bars.stop()
