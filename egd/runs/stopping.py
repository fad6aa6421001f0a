"""How a run ends when it is told to: by Ctrl-C, or by SIGTERM, as a cluster's scheduler sends it."""

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
    """The process was told to end; not an error, so that nothing takes it for the failure of a run."""


@dataclass
class _Told:
    """The signal that came, if one did, and whether the program looks after it by itself."""

    by: int | None = None
    later: bool = False


_told = _Told()


@contextmanager
def stoppable() -> Iterator[None]:
    """In the with-block the first Ctrl-C or SIGTERM raises Stopped, or waits where ``between_steps`` is; the second ends the
    process at once, as if nobody had looked after it.
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
    """In the with-block a signal only makes ``told`` true; at its end, Stopped is raised if one came."""
    before, _told.later = _told.later, True
    try:
        yield
    finally:
        _told.later = before
    if told() and not before:
        raise Stopped


@contextmanager
def at_once() -> Iterator[None]:
    """Within ``between_steps``, for what takes long and can be done again: a signal, also one that came before, ends it."""
    before, _told.later = _told.later, False
    try:
        if told():
            raise Stopped
        yield
    finally:
        _told.later = before


def told() -> bool:
    """Whether the process was told to end."""
    return _told.by is not None


def exit_code() -> int:
    """What shells expect of a process that a signal has ended: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (_told.by or signal.SIGINT)
