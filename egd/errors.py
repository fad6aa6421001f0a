"""Errors that the user can put right: shown on one screen, without a traceback, with exit code 2."""

from __future__ import annotations

import difflib
import errno
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from typing import Any


class UserError(Exception):
    """Error in the user's input. ``message`` names the value and the remedy, ``key`` the place in the recipe (dotted)."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class Notice(UserWarning):
    """Warning of something that people should look at; a terminal shows it as a line of the ``Reporter``."""


@contextmanager
def writable(key: str) -> Iterator[None]:
    """Raise UserError in place of the operating system's error when the folder of the option ``key`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise of_the_system(error, key) from None


def missing(error: ModuleNotFoundError) -> UserError:
    """Return an error that names the extra of egd with the missing module. Raises ``error`` itself where no extra has it."""
    wanted = (error.name or "").partition(".")[0]
    for line in requires("egd") or ():
        found = re.match(r"""([\w.-]+).*extra == ['"](\w+)['"]""", line)
        if found and found[1].replace("-", "_").lower() == wanted.lower() and found[2] != "dev":
            return UserError(f"'{wanted}' is not installed; pip install 'egd[{found[2]}]'")
    raise error


REMEDIES = {
    errno.ENOSPC: "make room on the disk, or choose another folder",
    errno.EDQUOT: "make room within the quota, or choose another folder",
    errno.EFBIG: "the limit on the size of files is too low (ulimit -f), or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that can be written"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "choose another folder"),
    **dict.fromkeys((errno.EIO, errno.ENOENT, errno.ESTALE), "look whether the disk is there and whole"),
}


def of_the_system(error: OSError, key: str | None = None) -> UserError:
    """Return an operating system's error about files with its remedy. Raises ``error`` itself where no remedy is known."""
    if error.errno not in REMEDIES:
        raise error
    place = f"{error.filename}: " if error.filename else ""
    return UserError(f"cannot read or write {place}{error.strerror}; {REMEDIES[error.errno]}", key=key)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return 'did you mean X?' where a known name is near, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}"


def shown(value: Any) -> str:
    """Format a value for a message, shortened to one line."""
    text = reprlib.repr(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
