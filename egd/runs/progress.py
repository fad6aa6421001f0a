"""Progress bars on a terminal, with rate and remaining time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from egd.errors import Notice
from egd.runs.safe_names import literal, printable

WIDE = 100
"""Columns from which a terminal counts as wide; on a narrower one the bar is shorter, so that the note has room."""


def rate(task: Task) -> float:
    """Return the steps a second since the bar began; steps of an earlier process are not counted."""
    done = task.completed - task.fields["before"]
    return done / task.elapsed if task.elapsed else 0.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        found = rate(task)
        digits = 0 if found >= 10 else 1 if found >= 0.1 else 3
        return Text(f"{found:,.{digits}f}/s" if found else "", style="progress.percentage")


class _Left(ProgressColumn):
    """The remaining time at the present rate; the time taken, once finished."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return _clock(task.finished_time or 0.0, "progress.elapsed")
        found = rate(task)
        if task.remaining is None or not found:
            return Text("-:--:--", style="progress.remaining")
        return _clock(task.remaining / found, "progress.remaining")


def _clock(seconds: float, style: str) -> Text:
    return Text(str(timedelta(seconds=round(seconds))), style=style)


@dataclass(frozen=True)
class Bar:
    """A progress bar of one task."""

    progress: Progress
    task: TaskID

    @property
    def done(self) -> int:
        """The number of steps done."""
        return int(self.progress.tasks[0].completed)

    def advance(self, steps: int, note: str | None = None) -> None:
        """Advance by some steps; ``note`` is shown behind the bar from now on."""
        self.at(self.done + steps, note)

    def at(self, done: int, note: str | None = None, *, total: int | None = None) -> None:
        """Set the number of steps done, and ``total`` where a better value is known by now."""
        self.progress.update(self.task, completed=done, total=total)
        if note is not None:
            self.progress.update(self.task, note=printable(note))


@dataclass(frozen=True)
class Reporter:
    """Messages and progress bars of a job on the terminal; ``clock`` gives the time in seconds."""

    console: Console = field(default_factory=Console)
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def bar(self, label: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """Show a progress bar for the with-block; finished bars stay on the screen."""
        wide = self.console.width >= WIDE
        note = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            TextColumn("{task.description:<20}" if wide else "{task.description}", markup=False),
            BarColumn(14 if wide else 8),
            MofNCompleteColumn(),
            _Rate(),
            _Left(),
            TextColumn("{task.fields[note]}", "dim", markup=False, table_column=note),
        )
        with Progress(*columns, console=self.console, get_time=self.clock, expand=True) as progress:
            yield Bar(progress, progress.add_task(printable(label), total=total, completed=done, note="", before=done))

    def notices(self) -> AbstractContextManager[None]:
        """Show every ``Notice`` that is warned of in the with-block through ``warn``, as ``noticing`` does."""
        return noticing(self.warn)

    def say(self, text: str) -> None:
        """Print a line without interpreting markup in it."""
        self.console.print(literal(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning in yellow without interpreting markup in it."""
        self.console.print(literal(text, "yellow"), soft_wrap=True)


@contextmanager
def noticing(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass the text of every ``Notice`` that is warned of in the with-block to ``tell``, each once. Other warnings are shown as
    usual.
    """
    told: set[str] = set()
    with warnings.catch_warnings():
        otherwise = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, Notice):
                otherwise(message, category, *where)
            elif str(message) not in told:
                told.add(str(message))
                tell(str(message))

        warnings.showwarning = show  # type: ignore[assignment]
        yield
