"""The run folder: config, metrics, checkpoints, figures and summary, each written so that a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egd.checkpoint import write_atomic
from egd.config import Tree, read_yaml, to_yaml
from egd.errors import UserError, writable
from egd.trust import record

HOW = frozenset({"device", "threads", "compile", "evaluation.workers"})
"""Keys that say how a run is computed, not what: a run may go on with other values of them."""


@dataclass(frozen=True)
class RunFolder:
    """``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``figures/``, ``summary.json`` below one path."""

    path: Path

    @property
    def config(self) -> Path:
        """The fully resolved recipe: ``egd run`` on it repeats the run."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """The result, written when the run is complete."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        """PNG files."""
        return self.path / "figures"

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint of a phase lies."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def open(self, config: Tree, *, resume: bool) -> None:
        """Create the folder, or go on in it. UserError when it holds another run, or one and ``resume`` is off.

        A run that goes on with another device or another number of threads (``HOW``) says so in its config from then on.
        """
        if self.config.exists():
            if not resume:
                raise UserError(
                    f"{self.path} holds a run already; add --resume to go on with it (or to show its result), "
                    "or choose another folder",
                    key="--out",
                )
            self._same(read_yaml(self.config), config)
        with writable("--out"):
            if not self.summary.exists():
                write_atomic(self.config, to_yaml(config).encode())
                record(self.path, config)
            self.figures.mkdir(parents=True, exist_ok=True)

    def _same(self, old: Tree, new: Tree) -> None:
        before, after = flatten(old), flatten(new)
        changed = [k for k in sorted({*before, *after} - HOW) if before.get(k) != after.get(k)]
        if changed:
            lines = [f"  {k}: {before.get(k)!r} there, {after.get(k)!r} now" for k in changed[:8]]
            raise UserError(
                f"{self.path} holds a run with other settings; use the same or choose another folder:\n" + "\n".join(lines),
                key="--resume",
            )

    def truncate_metrics(self, size: int) -> None:
        """Drop the lines written after the checkpoint from which a run goes on."""
        if self.metrics.exists():
            with self.metrics.open("r+b") as file:
                file.truncate(size)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def metrics_size(self) -> int:
        """Bytes of metrics so far."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Atomically."""
        write_atomic(self.summary, (json.dumps(summary, indent=2) + "\n").encode())

    def read_summary(self) -> dict[str, Any] | None:
        """None where the run is not complete."""
        if not self.summary.exists():
            return None
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary


def flatten(tree: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{head}{key}."))
        else:
            flat[head + str(key)] = value
    return flat
