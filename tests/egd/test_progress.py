"""What a terminal shows of the work: rates of this session, of elapsed time."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.console import Console

from egd.errors import Notice
from egd.runs.progress import Reporter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def reporter(width: int = 80) -> tuple[io.StringIO, Clock, Reporter]:
    text, clock = io.StringIO(), Clock()
    return text, clock, Reporter(Console(file=text, width=width), clock)


def test_results_that_come_all_at_once_have_the_rate_of_the_time_they_took() -> None:
    text, clock, shown = reporter()
    with shown.bar("evaluation", 60) as bar:
        clock.now = 120.0
        bar.advance(60)
    assert "60/60 0.5/s 0:02:00" in text.getvalue()


def test_steps_done_before_a_resume_are_no_speed() -> None:
    text, clock, shown = reporter()
    with shown.bar("critic", 1_000_000, 900_000) as bar:
        clock.now = 10.0
        bar.advance(5_000)
    assert "905000/1000000 500/s 0:03:10" in text.getvalue()  # 95,000 steps are left


def test_nothing_done_has_neither_rate_nor_time_left() -> None:
    text, clock, shown = reporter()
    with shown.bar("critic", 10):
        clock.now = 5.0
    assert "0/10" in text.getvalue() and "/s" not in text.getvalue() and "-:--:--" in text.getvalue()


def test_a_total_may_be_known_better_later_and_a_line_fits_a_narrow_terminal() -> None:
    text, clock, shown = reporter()
    with shown.bar("evaluation, 12 runs", None) as bar:
        clock.now = 2.0
        bar.at(30_000, "guided@1 80.3, 30 of 60 episodes", total=60_000)
        bar.at(30_000, total=50_000)
    assert "30000/50000 15,000/s 0:00:01 guided@" in text.getvalue()  # the note gives way
    assert max(map(len, text.getvalue().splitlines())) <= 80


def test_what_is_warned_of_is_a_line_once_and_other_warnings_are_what_they_were() -> None:
    text, _, shown = reporter()

    class Strange(Notice):
        """Of a kind of its own."""

    with warnings.catch_warnings(record=True) as others, shown.notices():
        for _ in range(2):
            warnings.simplefilter("always")
            warnings.warn("guided@1: samples have left [/red] the scale", Strange, stacklevel=1)
            warnings.warn("another's", stacklevel=1)
    assert text.getvalue() == "guided@1: samples have left [/red] the scale\n"
    assert [str(w.message) for w in others] == ["another's"] * 2
    with pytest.warns(Strange, match="in plain Python"):
        warnings.warn("in plain Python", Strange, stacklevel=1)
