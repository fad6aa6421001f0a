"""What a sweep has found so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from egd.report.tables import means


def means_below(out: Path) -> list[Mapping[str, str]]:
    """Rows of means over seeds of all complete runs in the folder, a cell of the grid a row and policy."""
    paths = sorted(out.rglob("summary.json"))
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return means(summaries, [cell_of(path.relative_to(out)) for path in paths])


def cell_of(path: Path) -> dict[str, str]:
    """The grid's keys and values, as folders of a run are named after them."""
    return dict(part.split("=", 1) for part in path.parts if "=" in part)
