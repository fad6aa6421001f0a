"""The data of a report: the scores of policies by task and label, and the published results to compare with.

A run of an experiment without policies has no entry here: it is one of the report's ``measured`` runs
(``egd.report.measures``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from egd.errors import UserError, nearest
from egd.report.references import Reference, matching
from egd.report.runs import Found, Run, grouped
from egd.report.statistics import AGGREGATES, Array, Estimate, estimate
from egd.runs.summaries import Measured


@dataclass(frozen=True)
class ResultEntry:
    """Policy of a run: its score at the last checkpoint and, for the headline policy, the best score in training.

    The headline policy represents the run.
    """

    label: str
    run: Run
    score: float
    best: float | None
    episodes: int

    @property
    def task(self) -> str:
        """The task of the run."""
        return self.run.summary.task


@dataclass(frozen=True)
class Report:
    """Runs with policies, the entries of the tables (headline policies, or all), published results, and unusable runs."""

    title: str
    runs: Sequence[Run]
    entries: Sequence[ResultEntry]
    references: Sequence[Reference]
    skipped: Sequence[tuple[Path, str]]
    measured: Sequence[Run] = ()
    """Runs of experiments without policies, which have measurements on samples."""
    against: str | None = None
    """The label whose learning curves all others are compared with."""
    threshold: float | None = None
    """The score to which training steps are counted."""

    @cached_property
    def tasks(self) -> list[str]:
        """All tasks in alphabetical order."""
        return sorted({run.summary.task for run in self.runs})

    @cached_property
    def labels(self) -> list[str]:
        """Labels of methods with their cells and policies; methods are in alphabetical order."""
        return list(dict.fromkeys(e.label for e in sorted(self.entries, key=lambda e: (e.run.summary.method, _by_value(e)))))

    @cached_property
    def cells(self) -> Mapping[tuple[str, str], Sequence[ResultEntry]]:
        """(task, label) -> an entry for every seed, in order of seeds."""
        groups = grouped(self.entries, lambda e: (e.task, e.label))
        return {key: sorted(group, key=lambda e: e.run.summary.seed) for key, group in groups.items()}

    @cached_property
    def returns(self) -> list[str]:
        """Tasks whose score is a return that is not normalised."""
        return sorted({run.summary.task for run in self.runs if not run.summary.normalised})

    @cached_property
    def shared(self) -> list[str]:
        """The tasks that all labels have."""
        return [t for t in self.tasks if all((t, label) in self.cells for label in self.labels)]

    @cached_property
    def common(self) -> list[str]:
        """The tasks that enter aggregates: the shared ones whose scores have one scale."""
        return [t for t in self.shared if t not in self.returns or len(self.tasks) == 1]

    def strata(self, label: str) -> list[Array]:
        """Return the scores (seeds,) of a label on every common task."""
        return [np.array([e.score for e in self.cells[task, label]]) for task in self.common]

    @cached_property
    def aggregates(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Name of a statistic -> label -> estimate over the common tasks; empty where there are none."""
        if not self.common:
            return {}
        return {name: {x: estimate(f, self.strata(x)) for x in self.labels} for name, f in AGGREGATES.items()}


def _by_value(entry: ResultEntry) -> Any:
    """Return the sort key of an entry: its settings, numbers by size; the headline policy precedes the others."""
    cell = [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in entry.run.cell.values()]
    return cell, entry.label != entry.run.label


def entries(run: Run, everything: bool) -> list[ResultEntry]:
    """Return the entry of the headline policy of a run with policies, under the run's label.

    With ``everything`` all other policies follow, under label/policy.
    """
    s = run.summary
    best = s.best.score if s.best is not None else None
    head = s.policies[s.headline]
    found = [ResultEntry(run.label, run, head.mean, best, head.episodes)]
    if everything:
        others = [(name, stats) for name, stats in s.policies.items() if name != s.headline]
        found += [ResultEntry(f"{run.label}/{name}", run, p.mean, None, p.episodes) for name, p in others]
    return found


def collect(
    found: Found,
    references: Iterable[Reference],
    *,
    title: str,
    everything: bool = False,
    only: Sequence[str] = (),
    against: str | None = None,
    threshold: float | None = None,
) -> Report:
    """Assemble a report on these runs. ``only`` selects methods by their names in the runs, or by labels. Raises UserError for
    an unknown method, and for a label ``against`` without a learning curve.
    """
    measured = [run for run in found.runs if isinstance(run.summary, Measured)]
    scored = [run for run in found.runs if not isinstance(run.summary, Measured)]
    evaluated = [run for run in scored if run.summary.policies]
    skipped = [*found.left_out, *((run.path, "not evaluated") for run in scored if not run.summary.policies)]
    if not evaluated and not measured:
        raise UserError("none of the runs was evaluated: there are no scores to report", key="RUNS")
    known = {name for run in (*evaluated, *measured) for name in (run.summary.method, run.label)}
    for name in only:
        if name not in known:
            raise UserError(f"no run has the method '{name}'; {nearest(name, known)}", key="--method")
    runs, measured = ([r for r in own if not only or {r.summary.method, r.label} & set(only)] for own in (evaluated, measured))
    tasks, algorithms = {r.summary.task for r in runs}, {r.summary.algorithm or r.summary.method for r in runs}
    beside = matching(references, tasks, algorithms)
    rows = [e for run in runs for e in entries(run, everything)]
    if against is not None:
        labels = dict.fromkeys(run.label for run in runs if run.summary.evaluations)
        if against not in labels:
            raise UserError(f"no row with a learning curve is called '{against}'; {nearest(against, labels)}", key="--against")
    return Report(title, runs, rows, beside, skipped, measured, against, threshold)
