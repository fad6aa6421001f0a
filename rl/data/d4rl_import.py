"""Import of D4RL's HDF5 files as local Minari datasets.

A D4RL file is one long table: ``observations`` (N, obs), ``actions`` (N, act), ``rewards`` (N,), ``terminals`` (N,)
and, in most files, ``timeouts`` (N,) and ``next_observations`` (N, obs). All other arrays (``infos/*``,
``metadata/*``) are ignored. Source: Fu et al. 2020, D4RL, and its ``qlearning_dataset``.

Observations and actions are stored in the dtype of the environment's spaces, or in float32 without an environment.
Rewards are float32.

Gym-MuJoCo and Adroit files are stored unchanged. A Maze2D file is converted to PointMaze's coordinates
(``rl.data.d4rl_mazes``) if the id belongs to a maze2d task. An AntMaze file is refused under the id of an antmaze task,
because D4RL's ant differs from the one of the task's environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from egd.errors import UserError
from rl.data.checks import Complain, Digits, column, flags, numbers, refusing
from rl.data.d4rl_mazes import actions_to_pointmaze, check_file, observations_to_pointmaze
from rl.data.hdf5 import opened
from rl.data.minari_store import check_new_id, episode_buffer, making, write_dataset
from rl.envs.making import register
from rl.tasks import Task, find_task

REQUIRED_KEYS = ("observations", "actions", "rewards", "terminals")
OPTIONAL_KEYS = ("timeouts", "next_observations")
TABLES = ("observations", "actions", "next_observations")


@dataclass(frozen=True)
class ImportReport:
    """Result of an import: counts of stored episodes and steps, and of dropped transitions."""

    dataset_id: str
    episodes: int
    steps: int
    dropped: int
    """Number of transitions that are not stored because the file lacks their next observation."""
    mean_return: float
    """Mean undiscounted return of the stored episodes."""


@dataclass(frozen=True)
class _Table:
    """Rows of a D4RL file: observations (N, obs), actions (N, act), all other arrays (N,)."""

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    timeouts: NDArray[np.bool_] | None
    next_observations: NDArray[Any] | None


def import_hdf5(
    path: Path,
    dataset_id: str,
    *,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    max_steps: int | None = None,
) -> ImportReport:
    """Convert the D4RL file at ``path`` to the local Minari dataset ``dataset_id``, and return counts of what was stored.

    ``env_id`` (with ``env_kwargs``) names the environment for evaluation: it defines the spaces, and
    ``dataset.recover_environment()`` creates it. ``max_steps`` is the length of an episode in rows; it is used only if the
    file has no ``timeouts``, and defaults to the step limit of the environment.

    If the id belongs to a maze2d task, the file's coordinates are converted to those of ``egd/Maze2D-v0``, which becomes
    the environment. Under any other id the coordinates are stored unchanged.
    """
    check_new_id(dataset_id)
    task = _task(dataset_id)
    if task is not None and task.family == "maze2d" and env_id is None:
        register()
        env_id, env_kwargs = task.env_id, dict(task.env_kwargs)
    spec, spaces = _environment(env_id, env_kwargs)
    table = _read(Path(path), spaces)
    if task is not None and task.family == "maze2d":
        table = _to_pointmaze(table, task.env_kwargs["map_name"])
    ends = _episode_ends(table, _step_limit(table, max_steps, spec))
    buffers = list(_episodes(table, ends))
    if not buffers:
        raise UserError(f"'{path}' has no complete transition: nothing to import")
    description = f"Imported from the D4RL file {Path(path).name}."
    observation_space, action_space = spaces or (_box(table.observations, np.inf), _box(table.actions, 1.0))
    with making(dataset_id):
        write_dataset(dataset_id, buffers, observation_space, action_space, spec, {"description": description})
    steps = sum(len(b.rewards) for b in buffers)
    mean_return = float(np.mean([np.sum(b.rewards, dtype=np.float64) for b in buffers]))
    return ImportReport(dataset_id, len(buffers), steps, len(table.rewards) - steps, mean_return)


def _task(dataset_id: str) -> Task | None:
    """Return the benchmark task that the id belongs to, or None. Raises UserError for antmaze, whose D4RL files come from
    another environment.
    """
    if "/" not in dataset_id:
        return None
    task = find_task(dataset_id)
    if task.family == "antmaze":
        raise UserError(
            f"'{dataset_id}' is the data of {task.name}, whose environment has another ant than D4RL's (five times the torque, "
            "half the time step, the maze mirrored): take Minari's dataset, or import the file under an id of your own"
        )
    return task


def _to_pointmaze(table: _Table, maze: str) -> _Table:
    check_file(table.observations, table.actions, maze)
    following = table.next_observations
    return replace(
        table,
        observations=observations_to_pointmaze(table.observations, maze),
        actions=actions_to_pointmaze(table.actions),
        next_observations=None if following is None else observations_to_pointmaze(following, maze),
    )


def _environment(env_id: str | None, env_kwargs: dict[str, Any] | None) -> tuple[EnvSpec | None, tuple[Box, Box] | None]:
    """Return the spec and the (observation, action) spaces of the environment, or (None, None) without one."""
    if env_id is None:
        if env_kwargs:
            raise UserError(f"env_kwargs {env_kwargs} without an env_id: name the environment or leave them out")
        return None, None
    try:
        env = gym.make(env_id, **(env_kwargs or {}))
    except Exception as error:  # whatever a foreign environment raises when it is made
        raise UserError(
            f"environment '{env_id}' cannot be made with {env_kwargs or {}}: {error} "
            "(an environment of another package is named module:id)"
        ) from error
    spec, spaces = env.spec, (env.observation_space, env.action_space)
    env.close()
    if not (isinstance(spaces[0], Box) and isinstance(spaces[1], Box)):
        raise UserError(f"environment '{env_id}' has spaces {spaces[0]} and {spaces[1]}: both must be a Box")
    return spec, (spaces[0], spaces[1])


def _read(path: Path, spaces: tuple[Box, Box] | None) -> _Table:
    """Return the file's rows, checked against each other and against the environment's spaces."""
    raw = check_hdf5(path, refusing(str(path), key=None))
    obs_dtype, act_dtype = (np.dtype(np.float32),) * 2 if spaces is None else (spaces[0].dtype, spaces[1].dtype)
    _check_spaces(path, raw, spaces)
    return _Table(
        observations=raw["observations"].astype(obs_dtype),
        actions=raw["actions"].astype(act_dtype),
        rewards=raw["rewards"].astype(np.float32),
        terminals=raw["terminals"],
        timeouts=raw.get("timeouts"),
        next_observations=raw["next_observations"].astype(obs_dtype) if "next_observations" in raw else None,
    )


def check_hdf5(path: Path, complain: Complain) -> dict[str, NDArray[Any]]:
    """Return every valid array of the file that an import uses, unconverted, and complain of the invalid ones."""
    found: dict[str, NDArray[Any]] = {}
    with opened(path, complain) as reader:
        if reader is None:
            return {}
        names = reader.names(reader.root)
        if missing := [key for key in REQUIRED_KEYS if key not in names]:
            has = ", ".join(sorted(names)[:20]) or "nothing"
            complain(
                f"it lacks {', '.join(map(repr, missing))} (it has: {has}): "
                f"a D4RL file holds the arrays {', '.join(REQUIRED_KEYS)}"
            )
        present = [key for key in REQUIRED_KEYS + OPTIONAL_KEYS if key in names]
        raw = {key: reader.array(reader.root, key, f"'{key}'") for key in present}
    rows = next((len(raw[key]) for key in ("rewards", *present) if _has_rows(raw.get(key))), None)  # type: ignore[arg-type]
    if rows == 0:
        complain("it has no complete transition, for it has no rows")
    for key, array in raw.items():
        sound = None if array is None else _sound(key, array, rows, complain)
        if sound is not None:
            found[key] = sound
    if {"next_observations", "observations"} <= found.keys():
        following, width = found["next_observations"].shape, found["observations"].shape
        if following != width:
            complain(f"'next_observations' and 'observations' differ in width: {following} and {width}")
    return found


def _has_rows(array: NDArray[Any] | None) -> bool:
    return array is not None and array.ndim > 0


def _sound(key: str, array: NDArray[Any], rows: int | None, complain: Complain) -> NDArray[Any] | None:
    """Return the array if it has one row of numbers per step; else complain and return None."""
    name = f"'{key}'"
    if key not in TABLES:
        values = column(array, name, rows, complain)
        if values is None:
            return None
        return numbers(values, name, complain) if key == "rewards" else flags(values, name, complain)
    if array.ndim != 2 or not array.shape[1]:
        complain(f"{name} has shape {array.shape}: a D4RL file has one row a step, (N, d)")
        return None
    if len(array) != rows:
        complain(f"{name} has {len(array)} rows, not {rows}")
        return None
    sound = numbers(array, name, complain)
    if sound is not None and key == "observations":
        digits = Digits()
        digits.add(sound)
        digits.check(name, complain)
    return sound


def _check_spaces(path: Path, raw: dict[str, NDArray[Any]], spaces: tuple[Box, Box] | None) -> None:
    """Raise UserError where the shapes of the file's rows differ from the environment's spaces."""
    for key, space in zip(("observations", "actions"), spaces or (), strict=False):
        if raw[key].shape[1:] != space.shape:
            raise UserError(
                f"'{path}': a row of '{key}' has shape {raw[key].shape[1:]}, the environment's {space.shape}: "
                "name the environment the file was recorded in"
            )


def _step_limit(table: _Table, max_steps: int | None, spec: EnvSpec | None) -> int | None:
    """Return the number of rows after which an episode is truncated, or None where the file marks truncations itself."""
    if max_steps is not None and max_steps < 1:
        raise UserError(f"max_steps is {max_steps}: give 1 or more")
    if table.timeouts is not None:
        return None
    limit = max_steps or (spec.max_episode_steps if spec is not None else None)
    if limit is None:  # a guess would join the end of one episode to the start of the next
        raise UserError("the file has no 'timeouts': give max_steps, the step limit it was recorded with")
    return limit


def _episode_ends(table: _Table, limit: int | None) -> list[int]:
    """Return, for every episode, the row after its last one, ascending; the final entry is N."""
    marked = table.terminals if table.timeouts is None else table.terminals | table.timeouts
    bounds = sorted({*(np.flatnonzero(marked) + 1).tolist(), len(marked)} - {0})
    if limit is None:
        return bounds
    ends: list[int] = []
    for start, end in pairwise([0, *bounds]):
        ends += [*range(start + limit, end, limit), end]
    return ends


def _episodes(table: _Table, ends: Sequence[int]) -> Iterator[EpisodeBuffer]:
    """Yield one buffer for every episode with at least one transition whose next observation is known."""
    for start, end in pairwise([0, *ends]):
        terminal = bool(table.terminals[end - 1])
        final = _final_observation(table, end - 1, terminal)
        # Without a final observation, the last row's observation takes its place and the last transition is dropped.
        steps = end - start - (final is None)
        if steps == 0:
            continue
        tail = [] if final is None else [final]
        yield episode_buffer(
            np.concatenate([table.observations[start:end], *tail]),
            table.actions[start : start + steps],
            table.rewards[start : start + steps],
            terminal=terminal,
        )


def _final_observation(table: _Table, row: int, terminal: bool) -> NDArray[Any] | None:
    """Return (1, obs): the observation after the last row of an episode, or None where the file lacks it.

    After a terminal row any observation will do, because no value is bootstrapped from it.
    """
    if table.next_observations is not None:
        return table.next_observations[row : row + 1]
    return table.observations[row : row + 1] if terminal else None


def _box(rows: NDArray[Any], bound: float) -> Box:
    """Return the Box(-bound, bound) of one row of ``rows`` (N, d)."""
    return Box(-bound, bound, shape=rows.shape[1:], dtype=np.float32)
