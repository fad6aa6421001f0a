"""Checks of observation and action spaces, and the order in which a nested observation becomes one vector."""

from __future__ import annotations

from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

from egd.errors import UserError

Array = np.ndarray[Any, Any]
Path: TypeAlias = tuple[str, ...]
"""Keys that lead to a Box within an observation, from the outside in; () where the observation is a Box itself."""


def flat_paths(space: gym.Space[Any], keys: tuple[str, ...] = (), name: str = "the observation space") -> tuple[Path, ...]:
    """Return the paths of an observation's Boxes, in the order in which they become one vector. Raises UserError, with
    ``name``, for a space that policies cannot observe.

    The order is that of ``keys``, else alphabetical at every level of a nested Dict: Minari stores entries alphabetically,
    whatever their order in the environment, and both must give the same vector.
    """
    if not isinstance(space, Dict):
        _check_box(space, name)
        return ((),)
    for key in keys:
        if key not in space.spaces:
            raise UserError(f"{name} has no '{key}', only {', '.join(map(str, space.spaces))}")
    chosen = keys or sorted(space.spaces)
    if not chosen:
        raise UserError(f"{name} is {space}: there is nothing in it to learn from")
    return tuple((key, *rest) for key in chosen for rest in flat_paths(space.spaces[key], (), f"{name}'s '{key}'"))


def _check_box(space: gym.Space[Any], name: str) -> None:
    if not isinstance(space, Box):
        raise UserError(
            f"{name} is {space}: observations must be a Box, or a Dict of them; encode the others as numbers (gymnasium has "
            "wrappers for that) and store the dataset anew"
        )
    if space.dtype == np.uint8 and len(space.shape) > 1:
        raise UserError(f"{name} is {space}: these are images, which no network here reads; store features of them instead")


def check_actions(space: gym.Space[Any], name: str = "the action space") -> None:
    """Raise UserError, with ``name``, unless actions are vectors of real numbers within bounds."""
    scale = "scale actions to [-1, 1] and store the dataset anew"
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"{name} is {space}: policies here act by real numbers, in a Box of floats only")
    if len(space.shape) != 1:
        raise UserError(f"{name} is {space}: actions must be vectors, a Box of one axis; {scale}")
    if not (space.is_bounded("below") and space.is_bounded("above")):
        raise UserError(f"{name} is {space}, without bounds: {scale}")


def entry(observation: Any, path: Path) -> Any:
    """Return the entry of a nested observation, or of a nested space, at ``path``."""
    for key in path:
        observation = observation[key]
    return observation


def flat_size(space: gym.Space[Any], paths: tuple[Path, ...]) -> int:
    """Return the length of the flattened observation."""
    return sum(int(np.prod(entry(space, path).shape)) for path in paths)


def flatten_observation(observation: Any, paths: tuple[Path, ...]) -> Array:
    """Flatten one observation to (S,) in float32."""
    return np.concatenate([np.asarray(entry(observation, path), dtype=np.float32).reshape(-1) for path in paths])


def flatten_rows(observations: Any, paths: tuple[Path, ...]) -> Array:
    """Flatten N stacked observations to (N, S), in their own precision."""
    parts = [np.asarray(entry(observations, path)) for path in paths]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
