"""The store of finished phases, each under a digest of all that it depends on, so that no run trains what another has
trained.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from egd.checkpoint import Damaged, read_meta
from egd.config.base import read_yaml
from egd.errors import UserError
from egd.files import sweep, write_atomic, write_text
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase, key_of
from egd.runs.phase_files import Meta, digest_of_rows, load_phase, not_finite_in, rows_of, save_phase
from egd.runs.restoring import UNFIT, check_fits, check_notes

GIGABYTES = 20.0
HOUR = 3600.0
SUFFIXES = (".safetensors", ".jsonl", ".json")
KEY = re.compile("[0-9a-f]{32}")


def default_store() -> Store | None:
    """Return the store in the folder ``EGD_STORE``, by default ``~/.cache/egd/phases``; None where the variable is empty. Its
    limit is ``EGD_STORE_GB`` (20) gigabytes. Raises UserError where that is not a size, or the path is not a folder.
    """
    chosen = os.environ.get("EGD_STORE")
    limit = os.environ.get("EGD_STORE_GB", GIGABYTES)
    try:
        size = float(limit) * 1e9
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise UserError(f"'{limit}' is not a number of gigabytes", key="EGD_STORE_GB")
    if chosen is None:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return Store(_folder(caches / "egd" / "phases"), size)
    return Store(_folder(Path(chosen).expanduser()), size) if chosen else None


def _folder(path: Path) -> Path:
    with suppress(OSError):  # no permission to look there: the error is shown when the store is used
        if path.exists() and not path.is_dir():
            remedy = "name a folder for finished phases, or set it to nothing to do without"
            raise UserError(f"'{path}' is not a folder; {remedy}", key="EGD_STORE")
    return path


def _about(folder: RunFolder) -> dict[str, Any]:
    """Describe the run that an entry comes from, for ``egd store list``."""
    config = read_yaml(folder.config) if folder.config.exists() else {}
    return {key: config[key] for key in ("task", "agent", "seed") if key in config}


@dataclass(frozen=True)
class Store:
    """A folder of finished phases: for each the checkpoint, the metrics and a readable cache key. Beyond ``limit`` bytes it
    removes the least recently used.
    """

    path: Path
    limit: float = GIGABYTES * 1e9

    def take(self, phase: Phase, folder: RunFolder, say: Callable[[str], None] = print) -> str | None:
        """Copy a finished phase into the run's folder as if the run had trained it. Returns its key, or None where the store
        does not have it or the run has already begun the phase itself; a run that resumes gets the same key again. A damaged
        entry is reported through ``say`` and removed.
        """
        if phase.cache_key is None:
            return None
        key, place = key_of(phase.cache_key), folder.checkpoint(phase.name)
        if place.exists():
            return key if read_meta(place).get("store") == key else None
        stored, entry = self.path / f"{key}.safetensors", StoredPhase(key, self.path, 0, 0.0)
        if not stored.exists():
            return None
        try:
            tensors, meta, rows = entry.whole()
            if meta.step != phase.steps:
                raise Damaged(f"{stored} is of step {meta.step} of {phase.steps}")
            check_notes(phase, meta, stored)
            os.utime(stored)
            check_fits(phase, tensors, stored)  # last: what follows it must not fail, as the learner is filled by then
        except (UserError, OSError) as error:  # the phase is trained anew, and then replaces this entry
            reason = str(error).removesuffix(f"; {UNFIT}").removesuffix("; remove it and run again")
            say(f"{reason}; phase '{phase.name}' is trained anew")
            with suppress(OSError):
                entry.remove()
            return None
        for row in rows:
            folder.log(json.loads(row) | {"phase": phase.name})
        about = meta.model_dump(include={"step", "seconds", "notes", "made"})
        save_phase(folder, phase.name, tensors, about | {"settings": folder.settings(), "store": key})
        return key

    def put(self, phase: Phase, folder: RunFolder) -> None:
        """Copy a phase that the run has finished into the store. A phase that began under another cache key is not stored,
        since a run may resume with other code or on another device. Raises OSError where the folder cannot be written.
        """
        if phase.cache_key is None:
            return
        key = key_of(phase.cache_key)
        stored = self.path / f"{key}.safetensors"
        if stored.exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path, older_than=HOUR)
        content = folder.checkpoint(phase.name).read_bytes()
        rows, meta = rows_of(phase.name, folder.metrics_lines()), read_meta(folder.checkpoint(phase.name))
        if digest_of_rows(rows) != meta["metrics"] or meta["made"] != key:
            return  # rows were lost or edited, or the phase began under another key
        write_atomic(self.path / f"{key}.jsonl", b"".join(rows))
        write_text(self.path / f"{key}.json", json.dumps(_about(folder) | {"cache_key": phase.cache_key}, indent=2) + "\n")
        write_atomic(stored, content)
        self.keep(self.limit)

    def entries(self) -> list[StoredPhase]:
        """Return all entries, the most recently used first."""
        files: dict[str, list[Path]] = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.suffix in SUFFIXES and KEY.fullmatch(path.stem):
                files.setdefault(path.stem, []).append(path)
        found = []
        for key, paths in files.items():
            with suppress(FileNotFoundError):  # another run may have removed it just now
                sizes = [path.stat() for path in paths]
                found.append(StoredPhase(key, self.path, sum(s.st_size for s in sizes), max(s.st_mtime for s in sizes)))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def keep(self, size: float) -> list[StoredPhase]:
        """Remove the least recently used entries until at most ``size`` bytes are left, and return the removed ones."""
        total, removed = 0, []
        for entry in self.entries():
            total += entry.size
            if total > size:
                entry.remove()
                removed.append(entry)
        return removed


@dataclass(frozen=True)
class StoredPhase:
    """A finished phase in a store: its size in bytes, and when it was last used, in seconds since 1970."""

    key: str
    folder: Path
    size: int
    used: float

    def about(self) -> dict[str, Any]:
        """Return the description of its run with ``cache_key``; {} where the file is lost."""
        try:
            found = json.loads((self.folder / f"{self.key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def whole(self) -> tuple[dict[str, Tensor], Meta, list[bytes]]:
        """Return the phase's tensors, metadata and rows of the metrics. Raises Damaged where they differ from what was stored,
        or are not finite.
        """
        path, log = self.folder / f"{self.key}.safetensors", self.folder / f"{self.key}.jsonl"
        tensors, meta = load_phase(path)
        rows = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        if len(rows) != meta.rows or digest_of_rows(rows) != meta.metrics:
            raise Damaged(f"{log} is not what was put into the store")
        if bad := not_finite_in(tensors):
            raise Damaged(f"{path} is of no use: its tensor {bad} is not finite")
        return tensors, meta, rows

    def remove(self) -> None:
        """Remove all files of the entry."""
        for suffix in SUFFIXES:
            (self.folder / f"{self.key}{suffix}").unlink(missing_ok=True)
