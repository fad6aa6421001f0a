"""Runs that measure samples instead of scoring policies: tables and a figure of the rows in their summaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from egd.report.results import Report
from egd.report.runs import Run, grouped, shown
from egd.report.tables import Table, spread
from egd.runs.summaries import Measured

SETTINGS = ("beta", "omega")
"""Numbers that identify a row; all others are measurements."""
UNITS = ("seconds", "finite")
"""Measurements that every row has, and that get no panel in the figure."""
DIGITS = 3

Place = tuple[tuple[str, str], ...]
"""The keys and values that identify a row."""


def measured_tables(report: Report) -> Iterator[Table]:
    """Yield a table for every experiment, with a row for every task, label and place: mean ± standard deviation over seeds."""
    for runs in grouped(report.measured, lambda run: run.summary.method).values():
        cells = list(cells_of(runs))
        places = list(dict.fromkeys(key for _, _, place, _ in cells for key, _ in place))
        names = list(dict.fromkeys(name for _, _, _, values in cells for name in values))
        rows: list[list[str]] = []
        sections: list[int] = []
        for task, group in grouped(cells, lambda cell: cell[0]).items():
            sections.append(len(rows))
            for _, label, place, values in group:
                numbers = (spread(values[name], DIGITS) if name in values else "" for name in names)
                rows.append([task, label, *(dict(place).get(key, "") for key in places), *numbers])
        seeds = sorted({run.summary.seed for run in runs})
        note = f"Mean ± standard deviation over seeds: {', '.join(map(str, seeds))}. Empty: not measured, or not finite."
        yield Table(f"Measured by {runs[0].summary.method}", ["task", "method", *places, *names], rows, [note], sections)


def cells_of(runs: Sequence[Run]) -> Iterator[tuple[str, str, Place, dict[str, list[float]]]]:
    """Yield (task, label, place, measurement -> values by seed), in the order of the runs' own rows."""
    found: dict[tuple[str, str, Place], dict[str, list[float]]] = {}
    for run in sorted(runs, key=lambda run: (run.summary.task, run.summary.seed)):
        for row in rows_of(run):
            values = found.setdefault((run.summary.task, run.label, place_of(row)), {})
            for name, value in row.items():
                if isinstance(value, int | float) and name not in SETTINGS:
                    values.setdefault(name, []).append(float(value))
    for (task, label, place), values in found.items():
        yield task, label, place, values


def rows_of(run: Run) -> Sequence[Mapping[str, Any]]:
    """Return the rows of measurements of a run."""
    return run.summary.rows if isinstance(run.summary, Measured) else ()


def place_of(row: Mapping[str, Any]) -> Place:
    """Return the keys and values that identify a row."""
    return tuple((key, shown(value)) for key, value in row.items() if isinstance(value, str) or key in SETTINGS)


def tidy_measures(report: Report) -> list[dict[str, Any]]:
    """Return the numbers of all tables of measurements, one a row."""
    return [
        {"task": task, "method": label, **dict(place), "measure": name, "mean": float(np.mean(values)), "seeds": len(values)}
        | {"std": float(np.std(values, ddof=1)) if len(values) > 1 else None}
        for task, label, place, numbers in cells_of(report.measured)
        for name, values in numbers.items()
    ]


def curves_of(report: Report) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Return panel (task, target and measurement) -> line (estimator and label) -> beta -> values by seed."""
    several = len({run.label for run in report.measured}) > 1
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for task, label, place, numbers in cells_of(report.measured):
        known = dict(place)
        beta, estimator = float(known.pop("beta", 0)), known.pop("estimator", label)
        where = " ".join([task, *(value for key, value in known.items() if key not in SETTINGS)])
        line = f"{estimator}, {label}" if several else estimator
        for name, values in numbers.items():
            if name not in UNITS:
                panels.setdefault(f"{where}: {name}", {}).setdefault(line, {})[beta] = values
    return {
        panel: lines
        for panel, lines in panels.items()
        if len({value for by_beta in lines.values() for values in by_beta.values() for value in values}) > 1
    }
