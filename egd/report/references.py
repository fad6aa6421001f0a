"""Published results to compare with: CSV files from installed packages or from the user."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from egd.errors import UserError
from egd.files import regular

GROUP = "egd.references"
"""Entry points of this group name packages whose ``*.csv`` files hold published results."""

LARGEST = 2**24
"""The largest size of a file of references, in bytes."""
COLUMNS = ("source", "task", "method", "score")


@dataclass(frozen=True)
class Reference:
    """A published score. ``algorithm`` is the algorithm of the runs to compare with, where the file states it."""

    source: str
    task: str
    method: str
    score: float
    std: float | None = None
    checkpoint: str = "last"
    algorithm: str | None = None

    @property
    def label(self) -> str:
        """The label of the reference's row or column in tables."""
        return f"{self.method} ({self.source})"


def installed() -> list[Reference]:
    """Return the references of all installed packages."""
    found = [path for entry in entry_points(group=GROUP) for path in files(entry.load()).iterdir()]
    return [r for path in sorted(found, key=str) if path.name.endswith(".csv") for r in read(path)]


def read(path: Any) -> list[Reference]:
    """Read a CSV file with the columns source, task, method, score, and optionally std, checkpoint (last or best) and
    algorithm. Lines that begin with # are comments. Raises UserError where the file cannot be read, or a column or number is
    missing.
    """
    try:
        text = (regular(path, LARGEST) if isinstance(path, Path) else path).read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot read {path}: {reason}", key="--reference") from None
    if not rows or (missing := [c for c in COLUMNS if c not in rows[0]]):
        wanted = missing if rows else COLUMNS
        raise UserError(f"{path} needs the columns {', '.join(COLUMNS)}; missing: {', '.join(wanted)}", key="--reference")
    return [_row(row, path) for row in rows]


def _row(row: dict[str, Any], path: Path) -> Reference:
    try:
        score, std = float(row["score"]), float(row["std"]) if row.get("std") else None
    except (TypeError, ValueError):
        raise UserError(f"{path}: {row}: score and std must be numbers", key="--reference") from None
    if "kind" in row:
        raise UserError(f"{path}: the column 'kind' is called 'algorithm' now; rename it", key="--reference")
    own = {key: row[key] for key in ("source", "task", "method")}
    return Reference(**own, score=score, std=std, checkpoint=row.get("checkpoint") or "last", algorithm=row.get("algorithm"))


def matching(rows: Iterable[Reference], tasks: Collection[str], algorithms: Collection[str]) -> list[Reference]:
    """Select the references on these tasks, under the tasks' own names; version suffixes such as -v2 are ignored in the
    comparison. A reference that states an algorithm is kept only where it is one of ``algorithms``.
    """
    names, known = {_plain(task): task for task in tasks}, {_bare(name) for name in algorithms}
    chosen = [r for r in rows if _plain(r.task) in names and (r.algorithm is None or _bare(r.algorithm) in known)]
    return [replace(r, task=names[_plain(r.task)]) for r in chosen]


def _plain(task: str) -> str:
    return re.sub(r"-v\d+$", "", task)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
