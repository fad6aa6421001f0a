"""Ending a run in good order on Ctrl-C, or on SIGTERM, which a cluster's scheduler sends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(KeyboardInterrupt):
    """The process was told to end. It is no Exception, so that it does not count as the failure of a run."""


@dataclass
class _Told:
    """The signal that came, if any, and whether the program itself chooses when to end."""

    by: int | None = None
    later: bool = False


_told = _Told()


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped on the first Ctrl-C or SIGTERM in the with-block, at once or at the end of ``between_steps``. The second
    signal ends the process at once by the system's default.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _told.by, _told.later = None, False
    before = {number: signal.signal(number, _take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _told.by = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _take(number: int, frame: FrameType | None) -> None:
    if _told.by is not None:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        return
    _told.by = number
    if not _told.later:
        raise Stopped
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nending after this step; once more to end at once\n")


@contextmanager
def between_steps() -> Iterator[None]:
    """Make a signal in the with-block only set ``told``; raise Stopped at the block's end if one came."""
    before, _told.later = _told.later, True
    try:
        yield
    finally:
        _told.later = before
    if told() and not before:
        raise Stopped


@contextmanager
def at_once() -> Iterator[None]:
    """Let a signal end the with-block at once although it lies within ``between_steps``, also a signal that came before. For
    work that takes long and can be repeated.
    """
    before, _told.later = _told.later, False
    try:
        if told():
            raise Stopped
        yield
    finally:
        _told.later = before


def told() -> bool:
    """Return whether the process was told to end."""
    return _told.by is not None


def exit_code() -> int:
    """Return the exit code that shells expect of a process that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (_told.by or signal.SIGINT)
