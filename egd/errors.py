"""What the user can put right: shown on one screen, without a traceback, with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. ``message`` names the value and the remedy, ``key`` the place in the recipe (dotted)."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


@contextmanager
def writable(key: str) -> Iterator[None]:
    """UserError in place of what the operating system says when the folder of that option cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}; choose another folder", key=key) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean X?' where a known name is near, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}"
