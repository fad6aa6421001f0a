"""Progress on a terminal: bars with rate and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed or 0
        return Text(f"{rate:,.0f}/s", style="progress.percentage")


@dataclass(frozen=True)
class Bar:
    """One thing under way."""

    progress: Progress
    task: TaskID

    @property
    def done(self) -> int:
        """Steps so far."""
        return int(self.progress.tasks[0].completed)

    def advance(self, steps: int, note: str | None = None) -> None:
        """Some steps further; ``note`` is shown behind the bar from now on."""
        if note is None:
            self.progress.update(self.task, advance=steps)
        else:
            self.progress.update(self.task, advance=steps, note=note)


@dataclass(frozen=True)
class Reporter:
    """Where a job tells people how it goes."""

    console: Console = field(default_factory=Console)

    @contextmanager
    def bar(self, label: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """A bar for the length of a with-block; finished bars stay on the screen."""
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(14),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(progress, progress.add_task(label, total=total, completed=done, note=""))
