"""Datasets made on the spot, by name: on the command line ``egd data generate ID --generator maze2d``, in a recipe
``data.generator: {name: maze2d, map_name: umaze}``.

A generator is a function ``(dataset_id, ..., progress)`` that writes the dataset. ``progress(done)`` tells the steps
done so far. A stranger's is named ``path/to/file.py:name``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from egd.components import Registry, Spec, build, parameters, validate
from egd.errors import UserError
from egd.progress import Reporter
from rl.data.minari_store import making

Progress: TypeAlias = Callable[[int], None]

GENERATORS = Registry("generator", "rl.generators")
GENERATOR_PARTS = {"dataset_id", "progress"}


def check_generator(spec: Spec, key: str) -> None:
    """UserError, naming ``key``, for a generator that does not exist, is none, or has not these settings."""
    if "dataset_id" not in parameters(validate(GENERATORS, spec, GENERATOR_PARTS, key)):
        raise UserError(f"'{spec.name}' is no generator: it takes no dataset_id", key=key)


def make(dataset_id: str, spec: Spec, reporter: Reporter, key: str) -> None:
    """Make the dataset by the generator of ``spec``, with a bar. UserError, naming ``key``, for what does not fit."""
    check_generator(spec, key)
    steps = _steps(spec, key)
    with making(dataset_id), reporter.bar(f"make {dataset_id}", steps) as bar:
        parts = {"dataset_id": dataset_id, "progress": lambda done: bar.advance(done - bar.done)}
        build(GENERATORS, spec, parts, key)
        bar.at(steps or bar.done)  # the last steps need not have been told


def _steps(spec: Spec, key: str) -> int | None:
    """How many steps there will be, where the generator has a setting ``steps``."""
    if "steps" in spec.settings:
        return int(spec.settings["steps"])
    parameter = parameters(GENERATORS.find(spec.name, key)).get("steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None
