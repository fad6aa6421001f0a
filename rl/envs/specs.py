"""Environments specified by the metadata of a dataset, which is not trusted.

gymnasium imports any ``module:name`` that a specification gives as its entry point. Here an environment is made if this
process has registered that entry point (by gymnasium, gymnasium-robotics, this package or the user's own code). Any other,
and an environment that reads a file, is made only if the user gave ``--trust-code``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec

from egd.config.trust import require_trust_of_data
from egd.errors import UserError
from rl.data.stored import Stored

KEY = "data.datasets"
WRAPPERS = {
    f"{wrapper.__module__}:{wrapper.__name__}"
    for wrapper in (
        wrappers.ClipAction,
        wrappers.ClipReward,
        wrappers.DelayObservation,
        wrappers.DtypeObservation,
        wrappers.FilterObservation,
        wrappers.FlattenObservation,
        wrappers.FrameStackObservation,
        wrappers.NormalizeObservation,
        wrappers.NormalizeReward,
        wrappers.OrderEnforcing,
        wrappers.PassiveEnvChecker,
        wrappers.RecordEpisodeStatistics,
        wrappers.RescaleAction,
        wrappers.RescaleObservation,
        wrappers.ReshapeObservation,
        wrappers.StickyAction,
        wrappers.TimeAwareObservation,
        wrappers.TimeLimit,
    )
}
"""gymnasium's own wrappers that only change observations, actions and rewards; they need no trust."""


SCRIPTS = ("__main__", "__mp_main__")


class NoEnvironment(UserError):
    """Error of a dataset without a usable environment: policies can be trained on it, but not evaluated."""


def stored_spec(stored: Stored, *, evaluation: bool = True) -> EnvSpec:
    """Return the specification of the environment that comes with a dataset, read from its metadata.

    With ``evaluation`` the environment meant for evaluation is preferred, if there is one. Raises NoEnvironment where there is
    none or where it cannot be made again; raises UserError where the specification cannot be read, or names code that is not
    trusted.
    """
    metadata = stored.metadata
    text = (metadata.eval_env_spec if evaluation else None) or metadata.env_spec
    if text is None:
        raise NoEnvironment(
            f"{stored.dataset_id} comes without an environment; import it with one (egd data import --env) or store it with an "
            "env_spec",
            key=KEY,
        )
    spec = _parsed(text, stored.dataset_id)
    _check_code(spec, stored.dataset_id)
    return spec


def recorded_spec(stored: Stored) -> EnvSpec | None:
    """Return the specification of the environment that the dataset was recorded in, to be stored again; nothing is made from
    it.
    """
    return None if stored.metadata.env_spec is None else _parsed(stored.metadata.env_spec, stored.dataset_id)


def _parsed(text: str, dataset_id: str) -> EnvSpec:
    for old in ('"order_enforce": true,', '"apply_api_compatibility": false,', '"autoreset": false, '):
        text = text.replace(old, "")  # as Minari does for specifications of gymnasium before 1.0
    try:
        return EnvSpec.from_json(text)
    except Exception as error:  # raised by json, by dataclasses or by gymnasium
        raise UserError(
            f"the environment that comes with {dataset_id} cannot be read: {' '.join(str(error).split())[:200]}", key=KEY
        ) from error


def _check_code(spec: EnvSpec, dataset_id: str) -> None:
    registered = {known.entry_point for known in gym.registry.values() if isinstance(known.entry_point, str)}
    if str(spec.entry_point) not in registered:
        _check_importable(str(spec.entry_point), "the environment", dataset_id)
        require_trust_of_data(str(spec.entry_point)[:200], f"{KEY}: env_spec of {dataset_id}")
    for wrapper in spec.additional_wrappers:
        if wrapper.kwargs is None:
            raise NoEnvironment(
                f"the environment that comes with {dataset_id} is wrapped in {str(wrapper.name)[:100]}, which does not say how "
                "it was made (gymnasium.utils.RecordConstructorArgs) and cannot be made again",
                key=KEY,
            )
        if str(wrapper.entry_point) not in WRAPPERS:
            _check_importable(str(wrapper.entry_point), "a wrapper of the environment", dataset_id)
            require_trust_of_data(str(wrapper.entry_point)[:200], f"{KEY}: env_spec of {dataset_id}")
    for file in _files([spec.kwargs, [wrapper.kwargs for wrapper in spec.additional_wrappers]]):
        require_trust_of_data(file[:200], f"{KEY}: env_spec of {dataset_id}", what="a file of this machine")


def _check_importable(entry_point: str, what: str, dataset_id: str) -> None:
    """Raise NoEnvironment for code of the script that recorded the dataset: here ``__main__`` is another module."""
    module, _, name = entry_point.partition(":")
    if module in SCRIPTS:
        name = name[:100] or "Name"
        raise NoEnvironment(
            f"{what} that comes with {dataset_id}, {entry_point[:100]}, is part of the script that recorded it, and cannot "
            "be made anywhere else: move it to a module, say my_env.py, and record the dataset with "
            f"entry_point='my_env:{name}' (then run with PYTHONPATH=. and --trust-code, or register the environment's id in a "
            "package of your own that is installed as a plugin of gymnasium)",
            key=KEY,
        )


def _files(value: Any) -> Iterator[str]:
    """Yield the strings among an environment's settings that name a file, such as a model for MuJoCo."""
    if isinstance(value, str):
        if "/" in value or re.match(r"[.~\\]|[A-Za-z]:", value):
            yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _files(part)


def make_stored(spec: EnvSpec, dataset_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return the environment of the specification. Raises UserError for any exception of its making."""
    try:
        env: gym.Env[Any, Any] = gym.make(spec, **kwargs)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the environment that comes with {dataset_id} cannot be made ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); its module must be found from here (PYTHONPATH, or an installed package), "
            "and take the settings that metadata.json has under env_spec",
            key=KEY,
        ) from error
    return env
