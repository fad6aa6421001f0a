"""Locks between processes: the operating system releases a lock when its holder dies, and a note in the file names the
holder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from egd.errors import UserError
from egd.files import read_regular

FAR = 1 << 30
"""Offset of the byte that is locked on Windows, beyond the note, which so stays readable."""


@contextmanager
def locked(path: Path, what: str, key: str) -> Iterator[None]:
    """Hold the lock in the file ``path`` for the with-block; the file is removed afterwards.

    Raises UserError, naming ``key`` and the locked thing ``what``, where another process holds the lock. It also does so where
    the file is of another host, whose locks are not visible from here on every file system. The file of a dead process of this
    host is taken over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = _taken(path, what, key)
    try:
        if (holder := _note(path)).get("host", _host()) != _host():
            remedy = f"if it has ended, remove {path}"
            raise UserError(f"{what} is in use by {_who(holder)}; {remedy}", key=key)
        try:  # where the disk has no room for the note, the lock's file is removed, too
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)
            os.write(number, json.dumps({"pid": os.getpid(), "host": _host(), "since": time.time()}).encode())
            yield
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(number)
        with suppress(OSError):
            if sys.platform == "win32":
                path.unlink()


def _taken(path: Path, what: str, key: str) -> int:
    """Open and lock the file, and return its descriptor once the file of that name is the locked one."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(number)
        except (BlockingIOError, PermissionError):
            os.close(number)
            raise UserError(f"{what} is in use by {_who(_note(path))}; wait until it ends, or end it", key=key) from None
        except OSError:  # a file system without locks: only the note protects
            return number
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        os.close(number)  # the earlier holder has just removed the file


def _lock(number: int) -> None:
    """Lock the open file. Raises OSError where another process has locked it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(number, FAR, os.SEEK_SET)
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _note(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, 2**16))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(holder: dict[str, Any]) -> str:
    if "since" not in holder:
        return "another process"
    hours = max(0.0, time.time() - float(holder["since"])) / 3600
    age = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(holder["since"])))
    return f"process {holder.get('pid')} on {holder.get('host')}, for {age}, since {when}"


def _host() -> str:
    return socket.gethostname()
