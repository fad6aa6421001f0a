"""Run folders for a report: found, checked, and told apart by the settings in which they differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from egd.config import read_yaml
from egd.errors import UserError
from egd.runs import HOW, flatten

IGNORED = HOW | {"seed", "task"}
"""Keys that do not make another method of a method."""

T = TypeVar("T")
K = TypeVar("K")


class Frozen(BaseModel):
    """What a report reads of a summary; further keys are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stats(Frozen):
    """Scores of one policy of one run."""

    mean: FiniteFloat
    episodes: int


class Point(Frozen):
    """One evaluation in training."""

    phase: str
    step: int
    score: FiniteFloat


class Summary(Frozen):
    """``summary.json``, as far as a report reads it."""

    task: str
    kind: str = ""
    method: str
    seed: int
    normalised: bool = True
    dataset_score: float | None = None
    policies: dict[str, Stats]
    """Empty where there was no environment to evaluate in."""
    headline: str
    best: Point | None = None
    evaluations: tuple[Point, ...] = ()
    seconds: dict[str, float] = {}
    reused: dict[str, Any] = {}
    action_ms: float | None = None
    """Milliseconds of one action, where the run measured it."""
    remarks: tuple[str, ...] = ()
    """Sentences that belong under every table with this task."""
    versions: dict[str, str] = {}
    device: str = ""

    @model_validator(mode="after")
    def _headline_exists(self) -> Summary:
        if self.policies and self.headline not in self.policies:
            raise ValueError(f"the headline policy '{self.headline}' is not among its policies")
        return self


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its result, its flattened settings, and those of them that its label shows."""

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
    """The runs of a report, and folders that could not be used with the reason."""

    runs: Sequence[Run]
    skipped: Sequence[tuple[Path, str]]


def find(roots: Iterable[Path]) -> Found:
    """All runs at or below the given folders. UserError where a folder does not exist, or no run is complete."""
    runs: list[Run] = []
    skipped: list[tuple[Path, str]] = []
    for folder in _folders(list(roots)):
        try:
            runs.append(_read(folder))
        except (UserError, ValueError) as error:
            skipped.append((folder, _reason(error)))
    runs, twice = _once(with_cells(runs))
    if not runs:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:8])
        raise UserError(f"found no finished run (a folder with config.yaml and summary.json){reasons}", key="RUNS")
    return Found(runs, skipped + twice)


def _folders(roots: Sequence[Path]) -> list[Path]:
    if missing := [str(root) for root in roots if not root.is_dir()]:
        raise UserError(f"no such folder: {', '.join(missing)}; give run folders, or folders that hold some", key="RUNS")
    return list({p.resolve(): p.parent for root in roots for p in sorted(root.rglob("config.yaml"))}.values())


def _read(folder: Path) -> Run:
    summary = folder / "summary.json"
    if not summary.exists():
        raise ValueError("not finished: it has no summary.json")
    tree = json.loads(summary.read_text(encoding="utf-8"))
    return Run(folder, Summary.model_validate(tree), flatten(read_yaml(folder / "config.yaml")))


def _reason(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"summary.json: {'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return f"summary.json is not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)


def _once(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """A seed counts once: of runs alike in task, label and seed the first is kept."""
    kept: dict[tuple[str, str, int], Run] = {}
    twice = []
    for run in runs:
        first = kept.setdefault((run.summary.task, run.label, run.summary.seed), run)
        if first is not run:
            twice.append((run.path, f"same task, settings and seed as {first.path}"))
    return list(kept.values()), twice


def with_cells(runs: Sequence[Run]) -> list[Run]:
    """The runs with the settings in which runs of their method differ on one task (what differs between tasks only is the
    recipe's choice for the task). A key that always equals one of its name further up took it over from there, as a
    variant does from the headline, and is not repeated. Settings that are not in every run, such as those of a component
    that only some have, are named where nothing else tells the runs apart.
    """
    keys = {method: _varying(group) for method, group in grouped(runs, lambda r: r.summary.method).items()}
    return [replace(run, cell={k: run.config.get(k) for k in keys[run.summary.method]}) for run in runs]


def _varying(runs: Sequence[Run]) -> list[str]:
    differing: set[str] = set()
    for alike in grouped(runs, lambda r: r.summary.task).values():
        names = {key for run in alike for key in run.config} - IGNORED
        differing |= {key for key in names if len({repr(run.config.get(key)) for run in alike}) > 1}
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
    """Into how many groups the values of these keys divide the runs of every task."""
    return len({(run.summary.task, *(repr(run.config.get(key)) for key in keys)) for run in runs})


def shown(value: Any) -> str:
    """A setting as a label writes it."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, keys in order of appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
