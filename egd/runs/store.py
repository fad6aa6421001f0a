"""Finished phases, kept under a digest of all that they depend on, so that no run trains what another has trained."""

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

from egd.config.base import read_yaml
from egd.errors import UserError
from egd.runs.checkpoint import Damaged, read_meta
from egd.runs.files import sweep, write_atomic, write_text
from egd.runs.folder import RunFolder
from egd.runs.phase_files import Meta, digest_of_rows, load_phase, not_finite_in, rows_of, save_phase
from egd.runs.phases import UNFIT, Phase, check_fits, key_of

GIGABYTES = 20.0
HOUR = 3600.0
SUFFIXES = (".safetensors", ".jsonl", ".json")
KEY = re.compile("[0-9a-f]{32}")


def default_store() -> Store | None:
    """In ``EGD_STORE``, none if that is empty; else in the user's cache folder, ``~/.cache/egd/phases``. It holds at most
    ``EGD_STORE_GB`` (20) gigabytes. UserError where that is no size, or the folder is none.
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
    with suppress(OSError):  # of a place that may not be looked into: said when it is written to, or listed
        if path.exists() and not path.is_dir():
            remedy = "name a folder for finished phases, or set it to nothing to do without"
            raise UserError(f"'{path}' is not a folder; {remedy}", key="EGD_STORE")
    return path


def _about(folder: RunFolder) -> dict[str, Any]:
    """For people: the run that an entry comes from."""
    config = read_yaml(folder.config) if folder.config.exists() else {}
    return {key: config[key] for key in ("task", "agent", "seed") if key in config}


@dataclass(frozen=True)
class Store:
    """A folder with, for each finished phase, its checkpoint, its metrics and, for people, what it was made of. Beyond
    ``limit`` bytes it forgets those that were not asked for the longest.
    """

    path: Path
    limit: float = GIGABYTES * 1e9

    def take(self, phase: Phase, folder: RunFolder, say: Callable[[str], None] = print) -> str | None:
        """Give the run the finished phase, as if it had trained it; the key, or None where the store does not have it, or the
        run has begun the phase. A run that goes on has its key again. What is damaged is said, and forgotten.
        """
        if phase.cache_key is None:
            return None
        key, place = key_of(phase.cache_key), folder.checkpoint(phase.name)
        if place.exists():
            return key if read_meta(place).get("store") == key else None
        stored, entry = self.path / f"{key}.safetensors", Entry(key, self.path, 0, 0.0)
        if not stored.exists():
            return None
        try:
            tensors, meta, rows = entry.whole()
            if meta.step != phase.steps:
                raise Damaged(f"{stored} is of step {meta.step} of {phase.steps}")
            check_fits(phase, tensors, stored)
            os.utime(stored)
        except (UserError, OSError) as error:  # trained anew, it is put in its place
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
        """Keep a phase that the run has finished, not one that began as another: a run may go on with other code, or on another
        device. OSError where the folder cannot be written.
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
            return  # lost, or edited: nothing for other runs
        write_atomic(self.path / f"{key}.jsonl", b"".join(rows))
        write_text(self.path / f"{key}.json", json.dumps(_about(folder) | {"cache_key": phase.cache_key}, indent=2) + "\n")
        write_atomic(stored, content)
        self.keep(self.limit)

    def entries(self) -> list[Entry]:
        """All that is there, what was asked for last first."""
        files: dict[str, list[Path]] = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.suffix in SUFFIXES and KEY.fullmatch(path.stem):
                files.setdefault(path.stem, []).append(path)
        found = []
        for key, paths in files.items():
            with suppress(FileNotFoundError):  # another run forgets too
                sizes = [path.stat() for path in paths]
                found.append(Entry(key, self.path, sum(s.st_size for s in sizes), max(s.st_mtime for s in sizes)))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def keep(self, size: float) -> list[Entry]:
        """Remove what was not asked for the longest, until no more bytes are left than that; what was removed."""
        total, removed = 0, []
        for entry in self.entries():
            total += entry.size
            if total > size:
                entry.remove()
                removed.append(entry)
        return removed


@dataclass(frozen=True)
class Entry:
    """A finished phase in a store: bytes, and when it was asked for last, in seconds since 1970."""

    key: str
    folder: Path
    size: int
    used: float

    def about(self) -> dict[str, Any]:
        """What its run was, and ``cache_key``; {} where that is lost."""
        try:
            found = json.loads((self.folder / f"{self.key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def whole(self) -> tuple[dict[str, Tensor], Meta, list[bytes]]:
        """The phase and its rows of the metrics. Damaged where they are not what was put there, or no numbers."""
        path, log = self.folder / f"{self.key}.safetensors", self.folder / f"{self.key}.jsonl"
        tensors, meta = load_phase(path)
        rows = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        if len(rows) != meta.rows or digest_of_rows(rows) != meta.metrics:
            raise Damaged(f"{log} is not what was put into the store")
        if bad := not_finite_in(tensors):
            raise Damaged(f"{path} is of no use: its tensor {bad} is not finite")
        return tensors, meta, rows

    def remove(self) -> None:
        """All its files."""
        for suffix in SUFFIXES:
            (self.folder / f"{self.key}{suffix}").unlink(missing_ok=True)
