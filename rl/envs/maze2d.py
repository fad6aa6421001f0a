"""D4RL's maze2d as an environment: a force-driven ball in a maze, rewarded near one fixed goal.

The simulator is gymnasium-robotics' PointMaze (MuJoCo, 10 ms a step); the task is D4RL's (Fu et al. 2020, Sec. 5):
the goal is one fixed cell, a step is rewarded when it ends within 0.5 m of it, and nothing ever terminates. PointMaze
itself differs from that in three ways undone here: its goal is jittered at every reset, its radius is 0.45 m, and its
observation holds the goal. ``rl.envs.mazes`` has the mazes and their coordinates, ``rl.data.generators.maze2d`` makes the data.

Differences from D4RL: an episode starts at rest and never in the goal's cell, whereas D4RL starts in any free cell with a
velocity of 0.1 m/s. The goal is the centre of its cell, whereas D4RL's goal is 0.2 m off in both directions, towards higher
rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from rl.envs.mazes import MAPS, STEP_LIMITS, Points, cells, centre, goal_xy, grid, step_limit
from rl.envs.robotics import PointMazeEnv, maps

__all__ = ["ENV_ID", "MAPS", "STEP_LIMITS", "Maze2DEnv", "goal_xy", "make_env", "register", "reward_at"]

Array: TypeAlias = NDArray[np.float32]

ENV_ID = "egd/Maze2D-v0"
GOAL_RADIUS = 0.5
"""Radius of the goal in metres, from d4rl/pointmaze/maze_model.py; PointMaze's is 0.45."""
POSITION_NOISE = 0.25
"""Half width, in metres, of the uniform noise on starts and random goals: PointMaze's ``position_noise_range``."""


class Maze2DEnv(gym.Env[Array, Array]):
    """Environment with observations (4,), position and velocity in float32 without the goal, and actions (2,), forces in [-1,
    1].

    ``map_name`` is a name of ``rl.envs.mazes.MAPS`` or the drawing of a maze. The reward is computed from the returned
    observation, so that a dataset's rewards are exactly those of its positions: 1 within ``GOAL_RADIUS`` of the goal, else
    0; or exp(-distance) if ``dense``.
    """

    metadata = PointMazeEnv.metadata

    def __init__(self, map_name: str = "umaze", *, dense: bool = False, render_mode: str | None = None) -> None:
        maze_map = grid(map_name)
        # PointMaze simulates and renders; this class defines the task (goal, start, reward).
        self._sim: Any = PointMazeEnv(maze_map=maze_map, render_mode=render_mode, continuing_task=True)
        Path(self._sim.tmp_xml_file_path).unlink(missing_ok=True)  # it is loaded by now, and PointMaze never removes it
        self.map_name, self.dense, self.render_mode = map_name, dense, render_mode
        self.goal = goal_xy(map_name)
        self._starts = cells(map_name, maps.RESET)
        self.observation_space = Box(-np.inf, np.inf, shape=(4,), dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, shape=(2,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Place the ball at rest near the centre of a random cell that is not the goal's; ``options`` are ignored."""
        super().reset(seed=seed)
        cell = self._starts[int(self.np_random.integers(len(self._starts)))]
        noise = self.np_random.uniform(-POSITION_NOISE, POSITION_NOISE, 2)
        self._sim.goal = self.goal.copy()
        self._sim.update_target_site_pos()
        self._sim.point_env.init_qpos[:2] = centre(self.map_name, cell) + noise
        observation = self._sim.point_env.reset()[0].astype(np.float32)
        return observation, self._info(observation)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Simulate 10 ms under the force ``action``."""
        observation = self._sim.point_env.step(action)[0].astype(np.float32)
        reward = float(reward_at(observation[:2], self.goal, dense=self.dense))
        return observation, reward, False, False, self._info(observation)

    def _info(self, observation: Array) -> dict[str, Any]:
        """Return the info ``success``, PointMaze's key: whether the position is within the radius of the goal."""
        return {"success": bool(reward_at(observation[:2], self.goal))}

    def render(self) -> Any:
        """Return PointMaze's rendering, which shows the goal."""
        return self._sim.render()

    def close(self) -> None:
        """Close the window, if there is one."""
        self._sim.close()


def make_env(
    map_name: str = "umaze",
    *,
    dense: bool = False,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> gym.Env[Array, Array]:
    """Return the task in the maze ``map_name``, truncated after ``max_episode_steps`` (default: the maze's ``step_limit``)."""
    env = Maze2DEnv(map_name, dense=dense, render_mode=render_mode)
    return TimeLimit(env, step_limit(map_name) if max_episode_steps is None else max_episode_steps)


def register() -> None:
    """Register ``egd/Maze2D-v0`` with gymnasium, with ``map_name`` and ``dense``. Called when this module is imported.

    ``gym.make`` does not pass ``max_episode_steps`` on, so that there it can only shorten the map's limit.
    """
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point="rl.envs.maze2d:make_env", kwargs={"map_name": "umaze", "dense": False})


def reward_at(positions: NDArray[Any], goal: Points, *, dense: bool = False, radius: float = GOAL_RADIUS) -> Points:
    """Compute rewards of positions, (..., 2) -> (...): 1 within ``radius`` of the goal, else 0; exp(-distance in metres) if
    ``dense``.
    """
    dx, dy = positions[..., 0] - goal[0], positions[..., 1] - goal[1]
    squared: Points = np.asarray(dx * dx + dy * dy, dtype=np.float64)
    return np.exp(-np.sqrt(squared)) if dense else (squared <= radius**2).astype(np.float64)


register()
