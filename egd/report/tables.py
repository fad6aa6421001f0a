"""The tables of a report as text: the same in a terminal, in Markdown, in LaTeX and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from egd.report import curves
from egd.report.references import Reference
from egd.report.results import Report, ResultEntry
from egd.report.runs import grouped, shown
from egd.report.statistics import Estimate, estimate, improvement
from egd.runs.summaries import Summary

MANY = 6
"""A table with more columns than this, and more columns than rows, is transposed."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; ``sections`` holds the numbers of the rows that begin a section."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    sections: Sequence[int] = ()


def spread(scores: Sequence[float], digits: int = 1) -> str:
    """Format the mean ± the sample standard deviation (n - 1) over seeds; a single score stands alone."""
    mean = f"{np.mean(scores):.{digits}f}"
    return mean if len(scores) < 2 else f"{mean} ± {np.std(scores, ddof=1):.{digits}f}"


def published(reference: Reference) -> str:
    """Format a published score as its source states it."""
    return f"{reference.score:.1f}" + (f" ± {reference.std:.1f}" if reference.std is not None else "")


def tables(report: Report) -> list[Table]:
    """Return all tables of a report that have rows."""
    found = [main(report), pairs(report), details(report)]
    if report.against is not None or report.threshold is not None:
        found.append(learning(report))
    return [table for table in found if table.rows]


def main(report: Report) -> Table:
    """Tabulate the scores by task and method at the last checkpoint, aggregates, and published results in further columns."""
    beside = [r for r in report.references if r.checkpoint == "last"]
    others = grouped(beside, lambda r: r.label)
    header = ["task", *(f"{label} ({_seeds(report, label)})" for label in report.labels), *others]
    rows = []
    for task in report.tasks:
        own = [spread([e.score for e in report.cells.get((task, label), ())] or [np.nan]) for label in report.labels]
        theirs = [next((published(r) for r in rows if r.task == task), "") for rows in others.values()]
        rows.append([_starred(report, task), *("" if text == "nan" else text for text in own), *theirs])
    sections = [len(rows)]
    for name, found in report.aggregates.items():
        rows.append([name, *(estimated.text(1) for estimated in found.values()), *[""] * len(others)])
    title = "Score at the last checkpoint, mean ± standard deviation over seeds"
    if len(header) - 1 > max(MANY, len(rows)):
        turned = [list(row) for row in zip(header, *rows, strict=True)]
        return Table(title, ["method", *turned[0][1:]], turned[1:], notes(report), [len(report.labels)])
    return Table(title, header, rows, notes(report), sections)


def _seeds(report: Report, label: str) -> str:
    """Format the number of seeds: n = 3, or n = 1-3 where tasks differ."""
    counts = sorted({len(group) for (_, name), group in report.cells.items() if name == label})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}-{counts[-1]}"


def _starred(report: Report, task: str) -> str:
    return f"{task}*" if task in report.returns else task


def notes(report: Report) -> list[str]:
    """Return the notes that explain the main table."""
    found = ["n is the number of seeds (runs)."]
    if report.common:
        found.append(
            "mean and median are over tasks, of means over seeds; IQM is the interquartile mean over tasks and seeds; "
            f"aggregated over {_count(len(report.common), 'task')}: {', '.join(report.common)}. In brackets: 95 % "
            "intervals of a bootstrap that draws seeds anew within each task. Of few seeds such intervals are too narrow."
        )
    left = [t for t in report.tasks if t not in report.common]
    if left:
        lacking = {t: [label for label in report.labels if (t, label) not in report.cells] for t in left}
        reasons = [f"{t} (not run: {', '.join(lacking[t])})" if lacking[t] else f"{t} (not normalised)" for t in left]
        found.append(f"Left out of the aggregates: {'; '.join(reasons)}.")
    single = [label for label in report.labels if any(len(report.cells[t, label]) < 2 for t in report.common)]
    if single:
        found.append(f"No interval where a task has a single seed: {', '.join(single)}.")
    if report.returns:
        found.append("* Returns: no reference scores are known for this task.")
    if report.references:
        found.append(
            "Published results are as their sources state them, with their data sets, environment versions and numbers of "
            "seeds: comparable only with runs on the same."
        )
    remarks = grouped([(x, r.summary.task) for r in report.runs for x in r.summary.remarks], lambda pair: pair[0])
    return found + [f"{', '.join(sorted({task for _, task in pairs}))}: {text}" for text, pairs in remarks.items()]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def details(report: Report) -> Table:
    """Tabulate the last and best checkpoint, seeds and episodes of every method for each task, with the data's mean return and
    published results.
    """
    rows: list[list[str]] = []
    sections = []
    for task in report.tasks:
        sections.append(len(rows))
        rows += [[_starred(report, task), *row] for row in _detail_rows(report, task)]
    for label, found in report.aggregates.get("IQM", {}).items():
        if label == report.labels[0]:
            sections.append(len(rows))
        rows.append([f"IQM over {_count(len(report.common), 'task')}", label, found.text(1), "", "", ""])
    title = "Last checkpoint, and the best evaluation in training"
    note = "The best is chosen by its own score, which flatters it. Episodes: at the end, of all seeds together."
    return Table(title, ["task", "method", "last", "best", "seeds", "episodes"], rows, [note], sections)


def _detail_rows(report: Report, task: str) -> Iterator[list[str]]:
    for label in report.labels:
        group = report.cells.get((task, label), ())
        if group:
            best = [e.best for e in group if e.best is not None]
            last = spread([e.score for e in group])
            yield [label, last, spread(best) if best else "", str(len(group)), str(sum(e.episodes for e in group))]
    data = [r.summary.dataset_score for r in report.runs if r.summary.task == task and r.summary.dataset_score is not None]
    if data:
        yield ["mean return of the data", f"{data[0]:.1f}", "", "", ""]
    for label, rows in grouped([r for r in report.references if r.task == task], lambda r: r.label).items():
        by = {r.checkpoint: published(r) for r in rows}
        yield [label, by.get("last", ""), by.get("best", ""), "", ""]


def learning(report: Report) -> Table:
    """Tabulate learning curves, with steps to the threshold and the difference from a row where these are asked for."""
    header = ["task", "method", "start", "mean over steps", "end"]
    notes = ["Mean ± standard deviation over seeds. Mean over steps: the area under the curve, divided by its length."]
    if report.threshold is not None:
        header.append(f"steps to {report.threshold:g}")
        notes.append("Steps to: the median over seeds, those that never get there included, and how many get there.")
    if report.against is not None:
        header.append(f"less {report.against}")
        notes.append(
            "Less: the mean of the differences of means over steps between runs of the same seed, with Student's 95 % interval."
        )
    rows: list[list[str]] = []
    sections = []
    for task in report.tasks:
        sections.append(len(rows))
        for label in report.labels:
            if any(e.run.label == label and e.run.summary.evaluations for e in report.cells.get((task, label), ())):
                rows.append([_starred(report, task), label, *_learning_cells(report, task, label)])
    return Table("Learning curves", header, rows, notes, sections)


def _learning_cells(report: Report, task: str, label: str) -> Iterator[str]:
    found = curves.row(report, task, label)
    yield from (spread(found[name]) for name in ("start", "area", "end"))
    if report.threshold is not None:
        middle, there = np.median(found["steps"]), sum(map(np.isfinite, found["steps"]))
        yield f"{f'{middle:.0f}' if np.isfinite(middle) else 'never'} ({there} of {len(found['steps'])})"
    if report.against is not None:
        difference = curves.paired(report, task, label)
        yield "" if difference is None else difference.text(1)


def pairs(report: Report) -> Table:
    """Tabulate the probability of improvement between all pairs of methods."""
    rows = [[x, y, estimated.text(2)] for x, y, estimated in improvements(report)]
    note = f"Over {_count(len(report.common), 'task')}, a random seed of each; 0.5: neither. Brackets as above."
    return Table("Probability that X scores higher than Y", ["X", "Y", "P(X > Y)"], rows, [note])


def improvements(report: Report) -> Iterator[tuple[str, str, Estimate]]:
    """Yield (X, Y, P(X > Y)) for all pairs of methods, where there are tasks that all methods have."""
    for x, y in combinations(report.labels if report.common else (), 2):
        yield x, y, estimate(improvement, [*report.strata(x), *report.strata(y)], resamples=2000)


def means(summaries: Sequence[Summary], cells: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return rows for the terminal: mean ± standard deviation over seeds for every task, grid cell, method and policy.

    ``cells`` holds the grid cell of each summary, which may be empty. A summary without policies gives no row. The best score
    in training is that of the headline policy.
    """
    results = zip(summaries, cells, strict=True)
    flat = [((s.task, tuple(c.items()), s.method, name), s, stats) for s, c in results for name, stats in s.policies.items()]
    rows: list[Mapping[str, str]] = []
    for (task, cell, method, policy), group in grouped(flat, lambda item: item[0]).items():
        row = {"task": task, **{key: shown(value) for key, value in cell}, "method": method, "policy": policy}
        last = spread([stats.mean for _, _, stats in group])
        best = [s.best.score for _, s, _ in group if s.best is not None and policy == s.headline]
        counts = {"seeds": str(len(group)), "episodes": str(sum(stats.episodes for _, _, stats in group))}
        rows.append({**row, "score ± std": last, "best": spread(best) if best else "", **counts})
    return rows


def by_run(report: Report) -> list[dict[str, Any]]:
    """Return all scores that the tables summarise, one a row."""
    found = [(*key, entry) for key, group in sorted(report.cells.items()) for entry in group]
    return [
        {"task": task, "method": label, "seed": e.run.summary.seed, "score": e.score, "best": e.best, "episodes": e.episodes}
        for task, label, e in found
    ]


def tidy(report: Report) -> list[dict[str, Any]]:
    """Return the numbers of all tables, one a row: results, published results, aggregates and probabilities of improvement."""
    rows = [_tidy_result(task, label, group) for (task, label), group in sorted(report.cells.items())]
    for r in report.references:
        rows.append(
            {"what": "published", "task": r.task, "method": r.method, "source": r.source, "score": r.score, "std": r.std}
            | {"checkpoint": r.checkpoint}
        )
    for name, found in report.aggregates.items():
        rows += [_tidy_estimate(name, label, estimated) for label, estimated in found.items()]
    return rows + [_tidy_estimate("P(X > Y)", f"{x} > {y}", estimated) for x, y, estimated in improvements(report)]


def _tidy_estimate(what: str, method: str, found: Estimate) -> dict[str, Any]:
    low, high = found.interval or (None, None)
    return {"what": what, "method": method, "score": found.value, "low": low, "high": high}


def _tidy_result(task: str, label: str, group: Sequence[ResultEntry]) -> dict[str, Any]:
    scores, best = [e.score for e in group], [e.best for e in group if e.best is not None]
    row: dict[str, Any] = {"what": "result", "task": task, "method": label, "checkpoint": "last", "score": np.mean(scores)}
    row["std"] = np.std(scores, ddof=1) if len(scores) > 1 else None
    row["best"] = np.mean(best) if best else None
    return row | {"seeds": len(group), "episodes": sum(e.episodes for e in group)}
