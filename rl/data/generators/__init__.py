"""Generators of datasets, by name: ``egd data generate ID --generator maze2d`` on the command line, or ``data.generator: {name:
maze2d, map_name: umaze}`` in a recipe.

A generator is a function ``(dataset_id, ..., progress)`` that writes the dataset and calls ``progress(done)`` with the
number of steps done so far. A user's own generator is named ``path/to/file.py:name``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from egd.config.components import Registry, Spec, build, parameters, validate
from egd.errors import UserError
from egd.files import read_regular, write_atomic
from egd.runs.progress import Reporter
from rl.data.minari_store import making
from rl.data.stored import is_local, place_of

Progress: TypeAlias = Callable[[int], None]

GENERATORS = Registry("generator", "rl.data.generators")
GENERATOR_PARTS = {"dataset_id", "progress"}
NO_PART = GENERATOR_PARTS | {"download"}
"""Parameters of a generator that do not influence its data."""


def check_generator(spec: Spec, key: str) -> None:
    """Raise UserError, naming ``key``, if the generator does not exist, takes no ``dataset_id``, or lacks one of these
    settings.
    """
    if "dataset_id" not in parameters(validate(GENERATORS, spec, GENERATOR_PARTS, key)):
        raise UserError(f"'{spec.name}' is no generator: it takes no dataset_id", key=key)


def make(dataset_id: str, spec: Spec, reporter: Reporter, key: str) -> None:
    """Make the dataset by the generator of ``spec``, with a progress bar. Raises UserError, naming ``key``, for an invalid
    ``spec``.
    """
    check_generator(spec, key)
    steps = _steps(spec, key)
    with making(dataset_id), reporter.bar(f"make {dataset_id}", steps) as bar:
        parts = {"dataset_id": dataset_id, "progress": lambda done: bar.advance(done - bar.done)}
        build(GENERATORS, spec, parts, key)
        bar.at(steps or bar.done)  # a generator need not report its last steps
        if is_local(dataset_id):
            write_atomic(_note(dataset_id), (json.dumps(_settled(spec, key), indent=2) + "\n").encode())


def check_made_by(dataset_id: str, spec: Spec, key: str) -> None:
    """Raise UserError where the dataset was made by another generator or with other settings.

    Imported and downloaded datasets have no note of a generator and are accepted.
    """
    note = _note(dataset_id)
    if not note.is_file():
        return
    try:
        made = dict(json.loads(read_regular(note, 2**20)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{note} cannot be read ({error}); make the dataset anew: minari delete {dataset_id}", key=key
        ) from error
    wanted = _settled(spec, key)
    changed = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
    if changed:
        differences = ", ".join(f"{name} {made.get(name)!r} then, {wanted.get(name)!r} in the recipe" for name in changed[:4])
        raise UserError(
            f"dataset {dataset_id} was made by another generator or other settings ({differences}); "
            f"give the new one an id of its own in data.datasets, or make it anew: minari delete {dataset_id}",
            key=key,
        )


def _note(dataset_id: str) -> Path:
    return place_of(dataset_id) / "generator.json"


def _settled(spec: Spec, key: str) -> dict[str, Any]:
    """Return all settings of a generator that decide its data, including defaults, as JSON values."""
    known = parameters(GENERATORS.find(spec.name, key)).items()
    defaults = {name: p.default for name, p in known if p.default is not p.empty}
    found = {**defaults, **spec.settings, "name": spec.name}
    settled: dict[str, Any] = json.loads(
        json.dumps({name: value for name, value in found.items() if name not in NO_PART}, default=str)
    )
    return settled


def _steps(spec: Spec, key: str) -> int | None:
    """Return the number of steps to be made, or None where the generator has no setting ``steps``."""
    if "steps" in spec.settings:
        return int(spec.settings["steps"])
    parameter = parameters(GENERATORS.find(spec.name, key)).get("steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None
