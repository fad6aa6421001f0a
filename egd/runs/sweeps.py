"""The results of a sweep so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from egd.errors import UserError
from egd.report.tables import means
from egd.runs.folder import RunFolder
from egd.runs.summaries import Common, Summary, read_summary


@dataclass(frozen=True)
class Means:
    """Means over seeds, a row for every cell of the grid and policy, and the errors of damaged runs, which are left out."""

    rows: Sequence[Mapping[str, str]]
    damaged: Sequence[str]


def means_below(out: Path) -> Means:
    """Compute the means of all complete runs below a folder that have scores of policies.

    Runs of experiments without policies are not included.
    """
    summaries: list[Summary] = []
    cells: list[Mapping[str, str]] = []
    damaged: list[str] = []
    for path in sorted(out.rglob("summary.json")):
        try:
            tree = RunFolder(path.parent).read_summary(Common)
            if tree is not None and "policies" in tree:
                summaries.append(read_summary(path, Summary)[1])
                cells.append(cell_of(path.relative_to(out), summaries[-1].method))
        except UserError as error:
            damaged.append(str(error))
    return Means(means(summaries, cells), damaged)


def cell_of(path: Path, method: str) -> dict[str, str]:
    """Return the grid's keys and values from the names of a run's folders. The folder of the method is skipped, since a
    method's name may contain ``=``, too.
    """
    parts = [*path.parts]
    if method in parts:
        parts.remove(method)
    return dict(part.split("=", 1) for part in parts if "=" in part)
