"""HDF5 files of strangers: an array is read only after what the file declares about it has been looked at.

Such a file may point to other files of the host, be a small one that unpacks to terabytes, or be damaged anywhere.
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
from egd.runs.files import regular
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
"""Those of HDF5 and h5py themselves; another one is a plugin, code that HDF5 would look for on the host."""
FLOOR = 2**28
RATIO = 100
"""A file may unpack to so many times its size, or to ``FLOOR`` bytes where that is more."""


class Reader:
    """An open file. What is not as it should be is complained of, and None returned for it."""

    def __init__(self, file: h5py.File, path: Path, complain: Complain) -> None:
        self.root, self.complain = file, complain
        size = path.stat().st_size
        self.room = min(max(FLOOR, RATIO * size), _memory() // 2)
        """Bytes that may still be read."""

    def names(self, group: h5py.Group) -> list[str]:
        """Of all that the group holds."""
        with self._told("the list of arrays"):
            return [str(name) for name in group]
        return []

    def entry(self, group: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset | None:
        """What the group itself holds under that name, not what a link points to."""
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
        """The same where it must be a group."""
        found = self.entry(group, name, where)
        if found is None or isinstance(found, h5py.Group):
            return found
        self.complain(f"{where} is an array, not a group of arrays")
        return None

    def array(self, group: h5py.Group, name: str, where: str) -> Array | None:
        """The same where it must be an array of numbers, read."""
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
        """All of the group's."""
        with self._told(f"what is noted with {where}"):
            return dict(group.attrs)
        return {}

    def _flaws(self, array: h5py.Dataset) -> Iterator[str]:
        """Why it is not to be read; one that has none is counted as read."""
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
        """A complaint in place of whatever HDF5 raises where a file is damaged; its documentation has no list of that."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self.complain(f"{where} cannot be read, the file is damaged ({_said(error)})")


def _whole(array: h5py.Dataset, size: int) -> bool:
    """Whether what is declared is there: HDF5 would make up the rest, however much that is."""
    if array.chunks is None:
        return bool(array.id.get_storage_size() >= size)
    pieces = math.prod(-(-n // m) for n, m in zip(array.shape, array.chunks, strict=True))
    piece = math.prod(array.chunks) * array.dtype.itemsize
    return bool(piece <= FLOOR and array.id.get_num_chunks() == pieces)


@contextmanager
def opened(path: Path, complain: Complain) -> Iterator[Reader | None]:
    """The file at ``path``, which must be one; None after a complaint."""
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
        with suppress(Exception):  # of a damaged file
            file.close()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _memory() -> int:
    """Bytes of the machine, or of the container."""
    return memory_limit()
