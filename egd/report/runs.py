"""Run folders of a report: found, checked, and labelled by the settings in which they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from egd.config.base import flatten, read_yaml
from egd.errors import UserError
from egd.runs import experiment as experiments
from egd.runs.summaries import Common, Measured, Summary, agree, read_metrics, read_summary

IGNORED = {"seed", "task"}
"""Settings that do not distinguish runs of a method, besides those of their execution."""

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its result, its flattened settings, and those of the settings that its label shows."""

    path: Path
    summary: Summary
    config: Mapping[str, Any]
    cell: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, and the settings that differ between runs of the method."""
        return " ".join([self.summary.method, *(f"{key}={shown(value)}" for key, value in self.cell.items())])


@dataclass(frozen=True)
class Found:
    """The runs of a report, and the folders that could not be used with the reasons. ``skipped`` folders are not finished or
    duplicates; ``damaged`` ones need attention.
    """

    runs: Sequence[Run]
    skipped: Sequence[tuple[Path, str]]
    damaged: Sequence[tuple[Path, str]] = ()

    @property
    def left_out(self) -> list[tuple[Path, str]]:
        """The damaged folders, then the skipped ones."""
        return [*self.damaged, *self.skipped]


def find(roots: Iterable[Path]) -> Found:
    """Find all runs at or below the given folders. Raises UserError where a folder does not exist, or no run can be used."""
    runs: list[Run] = []
    skipped: list[tuple[Path, str]] = []
    damaged: list[tuple[Path, str]] = []
    for folder in _folders(list(roots)):
        try:
            run = _read(folder) if (folder / "summary.json").exists() else "not finished: it has no summary.json"
            if isinstance(run, str):
                skipped.append((folder, run))
            else:
                runs.append(run)
        except UserError as error:
            damaged.append((folder, str(error)))
    runs, twice = _once(with_cells(runs))
    if not runs:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in (damaged + skipped)[:8])
        raise UserError(f"found no finished run (a folder with config.yaml and summary.json){reasons}", key="RUNS")
    return Found(runs, skipped + twice, damaged)


def _folders(roots: Sequence[Path]) -> list[Path]:
    if missing := [str(root) for root in roots if not root.is_dir()]:
        raise UserError(f"no such folder: {', '.join(missing)}; give run folders, or folders that hold some", key="RUNS")
    files = [p for root in roots for name in ("config.yaml", "summary.json") for p in root.rglob(name)]
    return list({p.parent.resolve(): p.parent for p in sorted(files)}.values())


def _read(folder: Path) -> Run | str:
    """Read a run, or return the reason why an undamaged folder has nothing to report. Raises UserError for a damaged one.

    The summary of a run without policies is a ``Measured`` one.
    """
    config, path = folder / "config.yaml", folder / "summary.json"
    result = read_summary(path, Common)[0]
    rows = None if "policies" in result else _measured(result, config)
    if "policies" not in result and rows is None:
        return "it has neither scores of policies nor rows of results"
    if not config.exists():
        raise UserError("it has a summary.json but no config.yaml; put that back from a copy")
    summary = read_summary(path, Summary)[1] if rows is None else _as_measured(path, result, rows, config)
    read_metrics(folder / "metrics.jsonl")  # a figure is drawn from these: damage is found here
    tree = read_yaml(config)
    if problem := agree(tree, result):
        raise UserError(f"{problem}: a file is another run's; put the right one back, or run it again")
    return Run(folder, summary, flatten(tree))


def _measured(result: Mapping[str, Any], config: Path) -> Any:
    """Return the rows of measurements of a summary: its ``results`` where these are a list, else what the installed experiment
    makes of the summary; None without any.
    """
    results = result.get("results")
    if isinstance(results, list) or not config.exists():
        return results if isinstance(results, list) else None
    entry = experiments.found().get(str(read_yaml(config).get("experiment")))
    experiment = None if entry is None else entry.load()
    return experiment.measured(result) if isinstance(experiment, experiments.HasMeasurements) else None


def _as_measured(path: Path, result: Mapping[str, Any], rows: Any, config: Path) -> Measured:
    method = str(read_yaml(config).get("experiment"))
    try:
        return Measured.model_validate({"method": method, **result, "rows": rows})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _once(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Remove duplicates: among runs with the same task, label and seed the first is kept. Returns the runs, and the removed
    folders with the reason.
    """
    kept: dict[tuple[str, str, int], Run] = {}
    twice = []
    for run in runs:
        first = kept.setdefault((run.summary.task, run.label, run.summary.seed), run)
        if first is not run:
            twice.append((run.path, f"same task, settings and seed as {first.path}"))
    return list(kept.values()), twice


def with_cells(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with their cells: the settings in which runs of the same method differ on one task.

    Settings that differ only between tasks are the recipe's choice for the task, and are not included. Where a nested key
    always equals a key of the same name closer to the root, as in a variant that inherits from the headline, only the latter is
    included. A setting that not all runs have, such as that of one component, is included only where it distinguishes runs that
    are otherwise alike.
    """
    keys = {method: _varying(group) for method, group in grouped(runs, lambda r: r.summary.method).items()}
    return [replace(run, cell={k: run.config.get(k) for k in keys[run.summary.method]}) for run in runs]


def _varying(runs: Sequence[Run]) -> list[str]:
    differing: set[str] = set()
    for of_task in grouped(runs, lambda r: r.summary.task).values():
        names = {key for run in of_task for key in run.config.keys() - set(run.summary.execution)} - IGNORED
        differing |= {key for key in names if len({repr(run.config.get(key)) for run in of_task}) > 1}
    everywhere = sorted(key for key in differing if all(key in run.config for run in runs))
    own = {
        (key.rpartition(".")[2], repr([run.config[key] for run in runs])): key for key in sorted(everywhere, key=_depth)[::-1]
    }
    chosen = sorted(own.values())
    for key in sorted(differing - set(everywhere)):
        if _parts(runs, [*chosen, key]) > _parts(runs, chosen):
            chosen.append(key)
    return chosen


def _depth(key: str) -> tuple[int, str]:
    return key.count("."), key


def _parts(runs: Sequence[Run], keys: Sequence[str]) -> int:
    """Return into how many groups the values of these keys divide the runs of every task."""
    return len({(run.summary.task, *(repr(run.config.get(key)) for key in keys)) for run in runs})


def shown(value: Any) -> str:
    """Format a setting as labels show it."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group items by key; keys are in order of appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
