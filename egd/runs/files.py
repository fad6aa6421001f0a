"""Files that are whole or not there: written beside their place and moved into it, so that neither a kill nor a full disk
leaves half of one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

SCRATCH = ".part-"
"""What the name of a file begins with that is being written."""

_numbers = count()


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a file, as ``regular``."""
    with regular(path, largest).open("rb") as file:
        return file.read(largest)


def regular(path: Path, largest: int = 2**63) -> Path:
    """The path itself. OSError for what is no file (a folder, a pipe, a device: reading one may never end), and for one of more
    bytes than ``largest``.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a device or a pipe"
        raise OSError(None, f"it is {what}, not a file", str(path))
    if about.st_size > largest:
        raise OSError(None, f"it has {about.st_size:,} bytes", str(path))
    return path


def no_file_below(folder: Path) -> Path | None:
    """The first thing below a folder that is neither a file nor a folder: a link, a pipe, a device. None where all are."""
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            mode = (path := Path(place) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return path
    return None


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that a reader, or a run after a power cut, finds the old content or the new, never half of it."""
    with replacing(path) as scratch:
        write_to_disk(scratch, data)


def write_text(path: Path, text: str) -> None:
    """The same of text, in UTF-8."""
    write_atomic(path, text.encode())


def write_to_disk(path: Path, data: bytes) -> None:
    """Make a file, and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``, with the same suffix; it takes that place at the end, and is removed where the
    writing fails. Its name is short, whatever the length of the other. OSError where a device or a pipe is of that name: it
    would be gone.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "It is no file that could be replaced", str(path))
    scratch = path.with_name(f"{SCRATCH}{os.getpid()}-{next(_numbers)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        if error.filename in (None, str(scratch), scratch):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def sweep(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove what killed processes have left half-written in a folder and below. For one whose lock is held, as nobody else
    writes there; else with an age in seconds that no file takes to be written.
    """
    for scratch in [*folder.rglob(f"{SCRATCH}*"), *folder.rglob("*.part")]:
        with suppress(OSError):  # gone meanwhile, or not ours to remove
            if time.time() - scratch.stat().st_mtime >= older_than:
                scratch.unlink()
