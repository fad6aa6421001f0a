"""Many runs in one command: the seeds and the grid of a command line, and the labels that distinguish the runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from egd.config.yaml_text import items, parse_or_text
from egd.errors import UserError, shown
from egd.runs.experiment import Options, Row
from egd.runs.safe_names import apart, folder_of_cell

Cell = Mapping[str, str]
"""A run's position in the grid: key -> value, for the keys with several values."""

ELSEWHERE = {
    "experiment": "take another recipe",
    "base": "take another recipe",
    "task": "use --task",
    "tasks": "use --task, and set what it changes",
    "method": "use --method",
    "methods": "use --method, and set what it changes",
    "budgets": "use --budget, and set what it changes",
    "default_budget": "use --budget",
    "description": "edit the recipe",
    "seed": "use --seed or --seeds",
    "device": "use --device",
}
"""Keys that --set and --grid cannot set, each with the way to choose it."""
RUNS = 10_000
"""The largest number of runs in one command."""
SEED = 2**32 - 1


def refuse_key(key: str, option: str, chosen: Mapping[str, bool]) -> None:
    """Raise UserError for a key that this option cannot set. The seed and the device can be set unless ``chosen`` says that
    their own options already set them.
    """
    section = key.partition(".")[0]
    if section in ELSEWHERE and chosen.get(section, True):
        raise UserError(f"'{key}' cannot be set here; {ELSEWHERE[section]}", key=option)


def check_count(options: Options, tasks: int = 1, methods: int = 1) -> None:
    """Raise UserError where tasks, methods, grid values and seeds make more runs than one command may have."""
    axes = {f"--grid {key}": len(values) for key, values in options.grid.items()}
    counts = {"tasks": tasks, "methods": methods, **axes, "--seeds": max(1, len(options.seeds))}
    if (total := math.prod(counts.values())) > RUNS:
        factors = " x ".join(f"{count:,} ({name})" for name, count in counts.items() if count > 1)
        raise UserError(f"{factors} = {total:,} runs, more than {RUNS:,}: make several commands of it")


def parse_seeds(text: str) -> list[int]:
    """Parse ``0-7`` or ``0,2,5`` into a list without repetitions. Raises UserError for any other form, and for more than
    ``RUNS`` seeds.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part.strip())
        if found is None:
            raise UserError(f"{shown(text)} is not a list of seeds such as 0-7 or 0,2,5", key="--seeds")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"'{part.strip()}' is an empty range; did you mean {last}-{first}?", key="--seeds")
        if last > SEED:
            raise UserError(f"a seed is at most {SEED:,}; '{part.strip()}' is more", key="--seeds")
        if len(seeds) + last - first >= RUNS:
            raise UserError(f"{shown(text)} are more than {RUNS:,} seeds; make several commands of it", key="--seeds")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def parse_grid(axes: Iterable[str]) -> dict[str, list[str]]:
    """Parse each ``a.b=1,3`` into a key and its values as text. Raises UserError for another form, a repeated key or value, and
    a key that another option chooses.
    """
    grid: dict[str, list[str]] = {}
    for axis in axes:
        key, values = _axis(axis)
        refuse_key(key, "--grid", {})
        if key in grid:
            together = ",".join([*grid[key], *values])
            raise UserError(f"'{key}' is given twice; list its values in one: {key}={together}", key="--grid")
        if len(values) > RUNS:
            raise UserError(f"{key}: {len(values):,} values, more than {RUNS:,}", key="--grid")
        if twice := _repeated(values):
            raise UserError(f"{key}: the value {twice} is given twice", key="--grid")
        grid[key] = values
    return grid


def _axis(text: str) -> tuple[str, list[str]]:
    """Parse one axis of the grid. Values are YAML, so that a value may contain commas: ``a.b=[1, 2],[3]``."""
    key, _, listed = text.partition("=")
    try:
        values = items(listed, f"the values of {key.strip()}")
    except UserError as error:
        raise UserError(str(error), key="--grid") from None
    if key.strip() and values and all(values):
        return key.strip(), values
    raise UserError(f"{shown(text)} is not of the form a.b=1,3,10", key="--grid")


def _repeated(values: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for text in values:
        value: Any = parse_or_text(text, "a value")
        with suppress(TypeError, ValueError):
            value = float(text)  # 1 is 1.0, and 1e-3 a number
        if repr(value) in seen:
            return text
        seen.add(repr(value))
    return None


@dataclass(frozen=True)
class Variation:
    """One run of ``--seeds`` and ``--grid``: its options, its folder below the task's folder (without the seed), and its
    cell.
    """

    options: Options
    folder: Path
    cell: Cell


def variations(options: Options) -> Iterator[Variation]:
    """Yield a run for every combination of the grid with every seed; a single run where neither is given."""
    for key, values in options.grid.items():
        apart({str(value): folder_of_cell(key, str(value)) for value in values}, "--grid")
    for values in product(*options.grid.values()):
        chosen = {key: str(value) for key, value in zip(options.grid, values, strict=True)}
        folder = Path(*(folder_of_cell(key, value) for key, value in chosen.items()))
        cell = {key: value for key, value in chosen.items() if len(options.grid[key]) > 1}
        settings = [*options.settings, *(f"{key}={value}" for key, value in chosen.items())]
        seeds: Sequence[int | None] = options.seeds or [options.seed]
        for seed in seeds:
            yield Variation(replace(options, settings=settings, seed=seed), folder, cell)


def run_label(task: str, cell: Cell, seed: int) -> str:
    """Return the label of a run for the terminal: task, cell and seed."""
    return " ".join([task, *(f"{key}={value}" for key, value in cell.items()), f"seed {seed}"])


def runs_label(task: str, runs: Sequence[tuple[Cell, int]]) -> str:
    """Return the label of several runs for the terminal: the keys and all their values. Each run is given by its cell and its
    seed.
    """
    if len(runs) == 1:
        return run_label(task, *runs[0])
    chosen = [{**cell, "seed": str(seed)} for cell, seed in runs]
    values = {key: list(dict.fromkeys(each[key] for each in chosen)) for key in chosen[0]}
    axes = [f"{key}={','.join(found)}" for key, found in values.items()]
    return f"{task}: {len(runs)} runs, {' '.join(axes)}"


def in_cell(rows: Iterable[Row], cell: Cell) -> list[Row]:
    """Insert the cell's columns behind the first column of every row of a results table."""
    return [{**dict([*row.items()][:1]), **cell, **dict([*row.items()][1:])} for row in rows]


class RunsFailed(Exception):
    """Some runs of a job failed: ``failures`` maps labels to exceptions, and ``rows`` are the results of the other runs."""

    def __init__(self, rows: list[Row], failures: Mapping[str, Exception]) -> None:
        super().__init__("; ".join(f"{label}: {error}" for label, error in failures.items()))
        self.rows, self.failures = rows, failures


@contextmanager
def kept(failures: dict[str, Exception], label: str) -> Iterator[None]:
    """Catch an exception of the run with this label and store it in ``failures``, so that the other runs go on."""
    try:
        yield
    except Exception as error:
        failures[label] = error
