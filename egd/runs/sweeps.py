"""What a sweep has found so far."""

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
    """Rows of means over seeds, a cell of the grid a row and policy, and why damaged runs have no part in them."""

    rows: Sequence[Mapping[str, str]]
    damaged: Sequence[str]


def means_below(out: Path) -> Means:
    """Of all complete runs in the folder that have scores of policies."""
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
    """The grid's keys and values, as folders of a run are named after them; the method's own may have the same form."""
    parts = [*path.parts]
    if method in parts:
        parts.remove(method)
    return dict(part.split("=", 1) for part in parts if "=" in part)
