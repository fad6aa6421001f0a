"""D4RL's maze2d data: one long walk through a maze to random goals, with rewards for the task's one goal."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from egd.bounds import NotNegative, Seed, Steps
from egd.errors import UserError
from rl.data.generators import Progress
from rl.data.minari_store import check_new_id, episode_buffer, write_dataset
from rl.envs.maze2d import ENV_ID, POSITION_NOISE, Maze2DEnv, reward_at
from rl.envs.mazes import Points, centre, free_cells, grid, read_drawing, step_limit
from rl.envs.waypoints import ARRIVAL_RADIUS, D4RLController, Policy, waypoint_controller
from rl.tasks import find_task

__all__ = ["maze2d"]

Array: TypeAlias = NDArray[np.float32]
Controller = Literal["direct", "d4rl"]
PROGRESS_EVERY = 1000


def maze2d(
    dataset_id: str,
    *,
    map_name: str = "umaze",
    map: str | None = None,  # named as in recipes and on the command line
    steps: Steps = 100_000,
    noise: NotNegative = 0.5,
    seed: Seed = 0,
    dense: bool = False,
    controller: Controller = "direct",
    progress: Progress | None = None,
) -> str:
    """Record a PointMaze ball driven to random goals by a waypoint controller, rewarded at one fixed goal: D4RL's maze2d.

    Stores ``steps`` steps as the local Minari dataset ``dataset_id``; returns the id. ``map`` replaces ``map_name`` by a maze
    of your own: a drawing, or a file with one (``rl.envs.mazes``). ``controller`` is ``direct`` (towards the next cell's
    centre, cutting corners) or ``d4rl`` (D4RL's, from point to point). ``noise`` is the standard deviation of the Gaussian
    noise added to its actions, as in D4RL's files.

    The data are one walk without a reset (d4rl: scripts/generation/generate_maze2d_datasets.py): an episode is truncated
    when the ball reaches its random goal, or at the map's step limit, and the next episode continues from there.
    Observations, actions and rewards are float32; rewards are computed for the map's one goal, not for the random goals.
    ``seed`` also seeds the environment's reset before the first episode, so that replaying all actions repeats the data.
    ``progress`` is called with the steps done so far.
    """
    check_new_id(dataset_id)
    maze = map_name if map is None else read_drawing(map)
    grid(maze)
    _check_id(dataset_id, maze, dense)
    if steps < 1:
        raise UserError(f"steps is {steps}: give 1 or more", key="steps")
    if noise < 0:
        raise UserError(f"noise is {noise}: a standard deviation is 0 or more", key="noise")
    env = Maze2DEnv(maze, dense=dense)
    observations, actions, ends = _walk(env, steps, noise, seed, controller, progress)
    rewards = reward_at(observations[1:, :2], env.goal, dense=dense).astype(np.float32)
    buffers = [
        episode_buffer(observations[a : b + 1], actions[a:b], rewards[a:b], seed=seed if a == 0 else None)
        for a, b in pairwise([0, *ends])
    ]
    name = f"'{maze}'" if map is None else "of a drawn map"
    metadata = {
        "algorithm_name": f"waypoint controller ({controller}) to random goals",
        "description": f"maze2d {name}, {steps} steps, action noise {noise}, seed {seed}.",
        "requirements": ["gymnasium-robotics>=1.4"],
    }
    write_dataset(dataset_id, buffers, env.observation_space, env.action_space, _spec(maze, dense), metadata)
    env.close()
    return dataset_id


def _check_id(dataset_id: str, maze: str, dense: bool) -> None:
    """Raise UserError where the id belongs to a maze2d task of another maze, for which rewards would be recomputed."""
    task = find_task(dataset_id) if "/" in dataset_id else None
    if task is None or task.family != "maze2d":
        return
    want = (task.env_kwargs["map_name"], task.env_kwargs["dense"])
    if want != (maze, dense):
        raise UserError(
            f"'{dataset_id}' names data of map_name {want[0]}, dense {str(want[1]).lower()}, and is relabelled and evaluated "
            "as such: take those settings or another id"
        )


def _spec(maze: str, dense: bool) -> EnvSpec | None:
    """Return the spec of the registered environment with these arguments, which ``recover_environment`` needs."""
    env = gym.make(ENV_ID, map_name=maze, dense=dense)
    env.close()
    return env.spec


def _walk(
    env: Maze2DEnv, steps: int, noise: float, seed: int, controller: Controller, progress: Progress | None
) -> tuple[Array, Array, list[int]]:
    """Return observations (steps + 1, 4), actions (steps, 2), and the step after every episode's last, ascending."""
    rng = np.random.default_rng(seed)
    observations = np.empty((steps + 1, 4), dtype=np.float32)
    actions = np.empty((steps, 2), dtype=np.float32)
    ends: list[int] = []
    limit, make = step_limit(env.map_name), waypoint_controller if controller == "direct" else D4RLController
    observations[0], _ = env.reset(seed=seed)
    done = 0
    while done < steps:
        goal = _random_goal(env.map_name, rng)
        policy: Policy = make(env.map_name, goal=goal, noise=noise, rng=rng)
        last = min(done + limit, steps)
        arrived = False
        while done < last and not arrived:
            actions[done] = policy(observations[done])
            observations[done + 1] = env.step(actions[done])[0]
            done += 1
            arrived = math.dist(observations[done, :2], goal) <= ARRIVAL_RADIUS
            if progress is not None and done % PROGRESS_EVERY == 0:
                progress(done)
        ends.append(done)
    return observations, actions, ends


def _random_goal(maze: str, rng: np.random.Generator) -> Points:
    """Draw a point (2,) near the centre of a random free cell; the cell of the map's own goal is one of them."""
    cells = free_cells(maze)
    cell = cells[int(rng.integers(len(cells)))]
    return centre(maze, cell) + rng.uniform(-POSITION_NOISE, POSITION_NOISE, 2)
