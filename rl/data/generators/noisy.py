"""Noisy variant of a dataset: its actions with noise, replayed in its environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from egd.bounds import Episodes, NotNegative, Seed
from egd.errors import UserError
from rl.data.generators import Progress
from rl.data.generators.sources import find_source
from rl.data.minari_store import check_new_id, write_dataset
from rl.data.stored import Episode, Stored, read_episodes
from rl.envs.making import register
from rl.envs.specs import make_stored, recorded_spec, stored_spec

__all__ = ["noisy"]

Env: TypeAlias = gym.Env[Any, Any]
Array: TypeAlias = NDArray[Any]


def noisy(
    dataset_id: str,
    source: str,
    *,
    noise: NotNegative = 0.1,
    seed: Seed = 0,
    episodes: Episodes | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> str:
    """Replay a dataset's actions with Gaussian noise in its environment, and record the transitions that result.

    ``source`` is a Minari id. ``noise`` is the standard deviation in units of the actions, which are clipped to their range;
    ``seed`` seeds it. ``episodes`` is the number of episodes replayed, from the first (all by default). With ``download`` a
    source that is not local is downloaded from Minari's hub.

    Every episode starts from its recorded reset; an episode without one continues from the end of the episode before, as in
    maze2d. It ends where the recorded episode does, or earlier if the environment terminates it. Without noise the data
    repeats.

    The replay is open-loop: actions do not react to the changed states, so in an unstable task such as hopper noise ends
    episodes early. Raises UserError where the environment or the resets are unknown. Returns the id.
    """
    check_new_id(dataset_id)
    if noise < 0:
        raise UserError(f"noise is {noise}: a standard deviation is 0 or more", key="noise")
    if episodes is not None and episodes < 1:
        raise UserError(f"episodes is {episodes}: give 1 or more", key="episodes")
    recorded = find_source(source, "source", download=download)
    if not isinstance(recorded.action_space, Box):
        raise UserError(f"the actions of {source} are {recorded.action_space}: noise is added to a Box only", key="source")
    space, env = recorded.action_space, _environment(source, recorded)
    count = min(episodes or recorded.total_episodes, recorded.total_episodes)
    metadata = {
        "algorithm_name": "replay with action noise",
        "description": f"The actions of {count} episodes of {source} with noise {noise}, seed {seed}, replayed.",
    }

    def buffers() -> Iterator[EpisodeBuffer]:
        done = 0
        for buffer in _replays(env, recorded, space, count, noise, seed):
            yield buffer
            done += len(buffer)
            if progress is not None:
                progress(done)

    try:
        spec = recorded_spec(recorded)
        write_dataset(dataset_id, buffers(), recorded.observation_space, recorded.action_space, spec, metadata)
    finally:
        env.close()
    return dataset_id


def _environment(source: str, recorded: Stored) -> Env:
    register()
    try:
        spec = stored_spec(recorded, evaluation=False)
        return make_stored(spec, source, disable_env_checker=True)
    except UserError as error:
        raise UserError(
            f"the environment of {source} cannot be recovered ({error}), and without it nothing can be replayed: "
            "import the dataset with its environment (egd data import --env), or take another",
            key="source",
        ) from error


def _replays(env: Env, recorded: Stored, space: Box, count: int, noise: float, seed: int) -> Iterator[EpisodeBuffer]:
    """Yield one buffer for every episode that can be played; none continues an episode that the environment terminated."""
    at: Any = None
    last_recorded: Any = None
    for index, episode in enumerate(read_episodes(recorded, indices=range(count))):
        if episode.seed is not None or episode.options is not None:
            at = _reset(env, episode, f"episode {index} of {recorded.dataset_id}")
        elif index == 0 or not _same(_row(episode.observations, 0), last_recorded):
            raise UserError(
                f"episode {index} of {recorded.dataset_id} has no reset seed and does not go on from the one before: "
                "it cannot be replayed",
                key="source",
            )
        last_recorded = _row(episode.observations, -1)
        if at is None:
            continue
        rng = np.random.default_rng([seed, index])
        buffer = _replay(env, at, _disturbed(episode.actions, noise, space, rng), episode)
        at = None if buffer.terminations[-1] else _row(buffer.observations, -1)
        yield buffer


def _reset(env: Env, episode: Episode, name: str) -> Any:
    """Reset the environment as recorded and return the first observation; UserError where it rejects the seed or options."""
    try:
        return env.reset(seed=episode.seed, options=episode.options)[0]
    except Exception as error:  # whatever a foreign environment raises
        raise UserError(
            f"{name} cannot begin again with seed {episode.seed} and options {str(episode.options)[:100]}: {error}",
            key="source",
        ) from error


def _disturbed(actions: Array, noise: float, space: Box, rng: np.random.Generator) -> Array:
    """Return the actions (T, A) with Gaussian noise, clipped to the space."""
    if noise == 0:
        return np.asarray(actions)
    disturbed = actions + noise * rng.standard_normal(actions.shape)
    return np.clip(disturbed, space.low, space.high).astype(actions.dtype)


def _replay(env: Env, first: Any, actions: Array, begun: Episode) -> EpisodeBuffer:
    """Play the actions (T, A) from observation ``first`` until they end or the environment terminates; return the episode.

    Truncations by the environment are ignored: the recorded episode decides the length.
    """
    observations, terminated = [first], False
    rewards: list[float] = []
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
        if not np.isfinite(rewards[-1]):
            raise UserError(f"the environment gave the reward {reward} in step {len(rewards)}: less noise may keep it sound")
        if terminated:
            break
    ends = np.arange(1, len(rewards) + 1) == len(rewards)
    fields: dict[str, Any] = {
        "observations": _stacked(observations),
        "actions": actions[: len(rewards)],
        "rewards": np.asarray(rewards),
        "terminations": ends & bool(terminated),
        "truncations": ends & (not terminated),
    }
    return EpisodeBuffer(seed=begun.seed, options=begun.options, **fields)


def _stacked(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: _stacked([o[key] for o in observations]) for key in observations[0]}
    return np.stack([np.asarray(o) for o in observations])


def _row(observations: Any, index: int) -> Any:
    if isinstance(observations, dict):
        return {key: _row(value, index) for key, value in observations.items()}
    return observations[index]


def _same(one: Any, other: Any) -> bool:
    """Return whether two observations are of one state; a dict's desired goal is ignored, for it changes without a step."""
    if isinstance(one, dict):
        return all(_same(one[key], other[key]) for key in one if key != "desired_goal")
    return bool(np.allclose(one, other, atol=1e-5))
