"""Finished phases, kept under a digest of all that they depend on, so that no run trains what another has trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from egd.checkpoint import Damaged, read_meta
from egd.errors import UserError
from egd.files import sweep, write_atomic
from egd.phases import Phase, key_of, unbounded
from egd.runs import RunFolder
from egd.saved import Meta, digest_of_rows, load_phase, not_finite_in, rows_of, save_phase

GIGABYTES = 20.0
HOUR = 3600.0


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
        if phase.made_of is None:
            return None
        key, place = key_of(phase.made_of), folder.checkpoint(phase.name)
        if place.exists():
            return key if read_meta(place).get("store") == key else None
        stored = self.path / f"{key}.safetensors"
        if not stored.exists():
            return None
        try:
            tensors, meta, rows = self._whole(key, phase)
            os.utime(stored)
        except (UserError, OSError) as error:  # trained anew, it is put in its place
            say(f"{error}; phase '{phase.name}' is trained anew")
            with suppress(OSError):
                stored.unlink()
            return None
        for row in rows:
            folder.log(json.loads(row) | {"phase": phase.name})
        about = meta.model_dump(include={"step", "seconds", "notes", "made"})
        save_phase(folder, phase.name, tensors, about | {"settings": folder.settings(), "store": key})
        return key

    def _whole(self, key: str, phase: Phase) -> tuple[dict[str, Tensor], Meta, list[bytes]]:
        """A finished phase and its rows of the metrics. UserError where they are not what was put there, or no numbers."""
        path, log = self.path / f"{key}.safetensors", self.path / f"{key}.jsonl"
        tensors, meta = load_phase(path)
        rows = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        if len(rows) != meta.rows or digest_of_rows(rows) != meta.metrics:
            raise Damaged(f"{log} is not what was put into the store")
        if meta.step != phase.steps:
            raise Damaged(f"{path} is of step {meta.step} of {phase.steps}")
        if bad := not_finite_in(tensors, unbounded(phase)):
            raise Damaged(f"{path} is of no use: its tensor {bad} is not finite")
        return tensors, meta, rows

    def put(self, phase: Phase, folder: RunFolder) -> None:
        """Keep a phase that the run has finished, not one that began as another: a run may go on with other code, or on another
        device. OSError where the folder cannot be written.
        """
        if phase.made_of is None:
            return
        key = key_of(phase.made_of)
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
        write_atomic(self.path / f"{key}.json", (json.dumps(phase.made_of, indent=2) + "\n").encode())
        write_atomic(stored, content)
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
