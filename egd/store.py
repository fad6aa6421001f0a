"""Finished phases, kept under a digest of all that they depend on, so that no run trains what another has trained."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egd.checkpoint import load_checkpoint, read_meta, save_checkpoint, write_atomic
from egd.errors import UserError
from egd.phases import Phase
from egd.runs import RunFolder

GIGABYTES = 20.0


def default_store() -> Store | None:
    """In ``EGD_STORE``, none if that is empty; else in the user's cache folder, ``~/.cache/egd/phases``. It holds at most
    ``EGD_STORE_GB`` (20) gigabytes. UserError where that is no number.
    """
    chosen = os.environ.get("EGD_STORE")
    limit = os.environ.get("EGD_STORE_GB", GIGABYTES)
    try:
        size = float(limit) * 1e9
    except ValueError:
        raise UserError(f"'{limit}' is not a number of gigabytes", key="EGD_STORE_GB") from None
    if chosen is None:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return Store(caches / "egd" / "phases", size)
    return Store(Path(chosen).expanduser(), size) if chosen else None


def key_of(made_of: Any) -> str:
    """The digest of a JSON value, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Store:
    """A folder with, for each finished phase, its checkpoint, its metrics and, for people, what it was made of. Beyond
    ``limit`` bytes it forgets those that were not asked for the longest.
    """

    path: Path
    limit: float = GIGABYTES * 1e9

    def take(self, phase: Phase, folder: RunFolder) -> str | None:
        """Give the run the finished phase, as if it had trained it; the key, or None where the store does not have it, or the
        run has begun the phase. A run that goes on has its key again.
        """
        if phase.made_of is None:
            return None
        key, place = key_of(phase.made_of), folder.checkpoint(phase.name)
        if place.exists():
            return key if read_meta(place).get("store") == key else None
        stored = self.path / f"{key}.safetensors"
        if not stored.exists():
            return None
        try:
            tensors, meta = load_checkpoint(stored)
            os.utime(stored)
        except (UserError, OSError):  # damaged, or forgotten by another run just now: trained anew, it is put in its place
            with suppress(OSError):
                stored.unlink()
            return None
        for row in _rows(self.path / f"{key}.jsonl"):
            folder.log(row | {"phase": phase.name})
        save_checkpoint(place, tensors, meta | {"metrics_size": folder.metrics_size(), "store": key})
        return key

    def put(self, phase: Phase, folder: RunFolder) -> None:
        """Keep a phase that the run has finished. OSError where the folder cannot be written."""
        if phase.made_of is None:
            return
        key = key_of(phase.made_of)
        stored = self.path / f"{key}.safetensors"
        if stored.exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps(row) for row in _rows(folder.metrics) if row.get("phase") == phase.name]
        write_atomic(self.path / f"{key}.jsonl", "".join(row + "\n" for row in rows).encode())
        write_atomic(self.path / f"{key}.json", (json.dumps(phase.made_of, indent=2) + "\n").encode())
        write_atomic(stored, folder.checkpoint(phase.name).read_bytes())
        self._forget()

    def _forget(self) -> None:
        found = []
        for entry in self.path.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another run forgets too
                found.append((entry.stat().st_mtime, entry.stat().st_size, entry))
        total = 0
        for _, size, entry in sorted(found, reverse=True):
            total += size
            if total > self.limit:
                for suffix in (".safetensors", ".jsonl", ".json"):
                    entry.with_suffix(suffix).unlink(missing_ok=True)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())
