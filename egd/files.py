"""Atomic files: each is written beside its place and then moved there, so that a kill or a full disk never leaves half a
file.
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
"""Prefix of the name of a file that is being written."""

_numbers = count()


def read_regular(path: Path, largest: int) -> bytes:
    """Read a regular file. Raises OSError as ``regular`` does."""
    with regular(path, largest).open("rb") as file:
        return file.read(largest)


def regular(path: Path, largest: int = 2**63) -> Path:
    """Return the path of a regular file. Raises OSError for a folder, a pipe or a device, since reading one may never end, and
    for a file of more than ``largest`` bytes.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a device or a pipe"
        raise OSError(None, f"it is {what}, not a file", str(path))
    if about.st_size > largest:
        raise OSError(None, f"it has {about.st_size:,} bytes", str(path))
    return path


def no_file_below(folder: Path) -> Path | None:
    """Return the first entry below a folder that is neither a file nor a folder, such as a link, a pipe or a device; None
    without one.
    """
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            mode = (path := Path(place) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return path
    return None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a run after a power cut, finds either the old or the new content."""
    with replacing(path) as scratch:
        write_to_disk(scratch, data)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, as ``write_atomic`` does."""
    write_atomic(path, text.encode())


def write_to_disk(path: Path, data: bytes) -> None:
    """Create a file, and wait until its content is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a scratch file that replaces ``path`` when the with-block ends, and is removed where the block fails.
    The scratch file has the suffix of ``path`` and a short name. Raises OSError where ``path`` is a device or a pipe, which
    replacing would destroy.
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
    """Remove the half-written files of killed processes from a folder and all folders below. Without ``older_than`` the caller
    must hold the folder's lock, so that no other process writes there; else files older than ``older_than`` seconds are
    removed, an age that no file in writing reaches.
    """
    for scratch in [*folder.rglob(f"{SCRATCH}*"), *folder.rglob("*.part")]:
        with suppress(OSError):  # removed meanwhile, or not permitted
            if time.time() - scratch.stat().st_mtime >= older_than:
                scratch.unlink()
