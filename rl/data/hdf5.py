"""Reader of untrusted HDF5 files: an array is read only after its declared properties have been checked.

Such a file may link to other files of the host, unpack to terabytes from a small size, or be damaged anywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from egd.errors import UserError
from egd.files import regular
from egd.runs.resources import memory_limit
from rl.data.checks import Array, Complain

FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}
"""Filters built into HDF5 and h5py; any other filter is a plugin, whose code HDF5 would search for on the host."""
FLOOR = 2**28
RATIO = 100
"""A file may unpack to ``RATIO`` times its size, or to ``FLOOR`` bytes if that is more."""


class Reader:
    """Reader of an open HDF5 file. Its methods complain of an invalid entry and return None for it."""

    def __init__(self, file: h5py.File, path: Path, complain: Complain) -> None:
        self.root, self.complain = file, complain
        size = path.stat().st_size
        self.room = min(max(FLOOR, RATIO * size), _memory() // 2)
        """Bytes that may still be read."""

    def names(self, group: h5py.Group) -> list[str]:
        """Return the names of all entries of the group."""
        with self._told("the list of arrays"):
            return [str(name) for name in group]
        return []

    def entry(self, group: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset | None:
        """Return the entry of that name in the group itself; a link is not followed."""
        with self._told(where):
            links, encoded = group.id.links, name.encode()
            if "/" in name:  # HDF5 would take it for a path, and follow links on its way
                self.complain(f"{where} has a '/' in its name")
            elif not links.exists(encoded):
                self.complain(f"{where} is missing")
            elif (kind := links.get_info(encoded).type) == h5py.h5l.TYPE_HARD:
                return group[name]
            elif kind == h5py.h5l.TYPE_EXTERNAL:
                file = os.fsdecode(links.get_val(encoded)[0])
                self.complain(f"{where} is a link to another file, '{file}': copy the array into this one")
            else:
                self.complain(f"{where} is a link to elsewhere: put the array itself there")
        return None

    def group(self, group: h5py.Group, name: str, where: str) -> h5py.Group | None:
        """Return the entry if it is a group; else complain and return None."""
        found = self.entry(group, name, where)
        if found is None or isinstance(found, h5py.Group):
            return found
        self.complain(f"{where} is an array, not a group of arrays")
        return None

    def array(self, group: h5py.Group, name: str, where: str) -> Array | None:
        """Return the entry's values if it is a valid array of numbers; else complain and return None."""
        found = self.entry(group, name, where)
        if found is None:
            return None
        if not isinstance(found, h5py.Dataset):
            self.complain(f"{where} is a group, not an array")
            return None
        with self._told(where):
            if (flaw := next(self._flaws(found), None)) is None:
                return np.asarray(found[()])
            self.complain(f"{where} {flaw}")
        return None

    def attributes(self, group: h5py.Group, where: str) -> dict[str, Any]:
        """Return all attributes of the group."""
        with self._told(f"what is noted with {where}"):
            return dict(group.attrs)
        return {}

    def _flaws(self, array: h5py.Dataset) -> Iterator[str]:
        """Yield the reasons why the array must not be read; an array without any is deducted from ``room``."""
        properties = array.id.get_create_plist()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if array.shape is None:
            yield "is empty"
        if properties.get_external_count():
            yield f"lies in another file, '{os.fsdecode(properties.get_external(0)[0])}': copy it into this one"
        if array.is_virtual:
            yield "is put together from other files: copy the rows into this one"
        if strange := [code for code in filters if code not in FILTERS]:
            yield f"is packed by the HDF5 plugin {strange[0]}: store it with gzip or without a filter"
        if array.dtype.kind not in "biuf":
            yield f"has type {array.dtype}, not numbers"
        size = math.prod(array.shape) * array.dtype.itemsize
        if size > self.room:
            shape = " x ".join(map(str, array.shape))
            yield f"has {shape} entries, {size / 2**30:.3g} GiB: more than such a file can hold, or than there is memory for"
        if size and not _whole(array, size):
            yield f"declares {array.shape[0] if array.shape else 1} rows, of which the file does not hold all"
        self.room -= size

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        """Complain instead of raising, whatever HDF5 raises for a damaged file; its documentation does not list the errors."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self.complain(f"{where} cannot be read, the file is damaged ({_said(error)})")


def _whole(array: h5py.Dataset, size: int) -> bool:
    """Return whether the file holds all declared data: HDF5 would fill in the missing part, however large."""
    if array.chunks is None:
        return bool(array.id.get_storage_size() >= size)
    pieces = math.prod(-(-n // m) for n, m in zip(array.shape, array.chunks, strict=True))
    piece = math.prod(array.chunks) * array.dtype.itemsize
    return bool(piece <= FLOOR and array.id.get_num_chunks() == pieces)


@contextmanager
def opened(path: Path, complain: Complain) -> Iterator[Reader | None]:
    """Open the file at ``path`` and yield its reader, or None after a complaint."""
    try:
        file = h5py.File(regular(path), "r")
    except FileNotFoundError:
        complain(f"there is no file {path}")
        yield None
        return
    except Exception as error:
        complain(f"{path.name} cannot be read as HDF5, it is damaged or none ({_said(error)})")
        yield None
        return
    try:
        yield Reader(file, path, complain)
    finally:
        with suppress(Exception):  # a damaged file may fail to close
            file.close()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _memory() -> int:
    """Return the memory of the machine, or of the container, in bytes."""
    return memory_limit()
