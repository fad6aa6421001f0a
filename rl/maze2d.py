"""D4RL's maze2d, made on the spot: a force-driven ball in a maze, and data of it walking to random goals.

The simulator is gymnasium-robotics' PointMaze (MuJoCo, 10 ms a step); the task is D4RL's (Fu et al. 2020, Sec. 5):
the goal is one fixed cell, a step is rewarded when it ends within 0.5 m of it, nothing ever terminates, and the data
comes from a planner that was after other goals. PointMaze itself differs from that in three ways undone here: its
goal is jittered at every reset, its radius is 0.45 m, and its observation holds the goal.

Coordinates are PointMaze's: metres, origin in the middle of the maze, x along the columns, y against the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from egd.errors import UserError, nearest
from rl.minari_store import check_new_id, episode_buffer, write_dataset
from rl.robotics import PointMazeEnv, maps

Array: TypeAlias = NDArray[np.float32]
Points: TypeAlias = NDArray[np.float64]
MazeMap: TypeAlias = list[list[int | str]]
Cell: TypeAlias = tuple[int, int]
Policy: TypeAlias = Callable[[Array], Array]
"""Observation (4,) -> action (2,) in [-1, 1]."""

ENV_ID = "egd/Maze2D-v0"
GOAL_RADIUS = 0.5
"""Metres, d4rl/pointmaze/maze_model.py. PointMaze's own is 0.45."""
POSITION_NOISE = 0.25
"""Half width, in metres, of the uniform noise on start and walking goals: PointMaze's ``position_noise_range``."""
ARRIVAL_RADIUS = 0.1
"""Metres at which a walk has reached its goal: ``solve_thresh`` of d4rl/pointmaze/waypoint_controller.py."""
P_GAIN, D_GAIN = 10.0, -1.0
"""Gains of the same controller, on metres and on metres a second."""
DISCOUNT = 0.99
STEP_LIMITS = {"umaze": 300, "medium": 600, "large": 800}
"""D4RL's ``max_episode_steps``."""
PROGRESS_EVERY = 1000

_CELL_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def _with_goal(maze: list[list[int]], goal: Cell) -> MazeMap:
    """``maze`` with 'g' in the goal cell and 'r', a start, in all other free ones."""
    return [
        [1 if wall else maps.GOAL if (i, j) == goal else maps.RESET for j, wall in enumerate(row)] for i, row in enumerate(maze)
    ]


MAPS: dict[str, MazeMap] = {
    "umaze": _with_goal(maps.U_MAZE, (1, 1)),
    "medium": _with_goal(maps.MEDIUM_MAZE, (6, 6)),
    "large": _with_goal(maps.LARGE_MAZE, (7, 9)),
}
"""Mazes by name, the goal where D4RL's ``U_MAZE``, ``MEDIUM_MAZE`` and ``LARGE_MAZE`` have their 'G'."""


class Maze2DEnv(gym.Env[Array, Array]):
    """Observation (4,): position and velocity, float32, without the goal. Action (2,): force in [-1, 1].

    The reward is read off the observation that is returned, so that a dataset's rewards are exactly those of its
    positions: 1 within ``GOAL_RADIUS`` of the goal, else 0; dense: exp(-distance).
    """

    metadata = PointMazeEnv.metadata

    def __init__(self, map_name: str = "umaze", *, dense: bool = False, render_mode: str | None = None) -> None:
        maze_map = _map(map_name)
        # PointMaze is the simulator and the picture; the task around it (goal, start, reward) is this class.
        self._sim: Any = PointMazeEnv(maze_map=maze_map, render_mode=render_mode, continuing_task=True)
        Path(self._sim.tmp_xml_file_path).unlink(missing_ok=True)  # loaded by now, and PointMaze never removes it
        self.map_name, self.dense, self.render_mode = map_name, dense, render_mode
        self.goal = goal_xy(map_name)
        self._starts = _cells(map_name, maps.RESET)
        self.observation_space = Box(-np.inf, np.inf, shape=(4,), dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, shape=(2,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """At rest near the centre of a random cell that is not the goal's. ``options`` are not read."""
        super().reset(seed=seed)
        cell = self._starts[int(self.np_random.integers(len(self._starts)))]
        noise = self.np_random.uniform(-POSITION_NOISE, POSITION_NOISE, 2)
        self._sim.goal = self.goal.copy()
        self._sim.update_target_site_pos()
        self._sim.point_env.init_qpos[:2] = _centre(self.map_name, cell) + noise
        observation = self._sim.point_env.reset()[0].astype(np.float32)
        return observation, self._info(observation)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """10 ms under the force ``action``."""
        observation = self._sim.point_env.step(action)[0].astype(np.float32)
        reward = float(reward_at(observation[:2], self.goal, dense=self.dense))
        return observation, reward, False, False, self._info(observation)

    def _info(self, observation: Array) -> dict[str, Any]:
        """``success``: within the radius of the goal (PointMaze's key)."""
        return {"success": bool(reward_at(observation[:2], self.goal))}

    def render(self) -> Any:
        """PointMaze's picture, the goal in it."""
        return self._sim.render()

    def close(self) -> None:
        """Closes the window, where there is one."""
        self._sim.close()


def make_env(
    map_name: str = "umaze",
    *,
    dense: bool = False,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> gym.Env[Array, Array]:
    """The task on ``map_name``, truncated after ``max_episode_steps`` (D4RL's limit for the map by default)."""
    env = Maze2DEnv(map_name, dense=dense, render_mode=render_mode)
    return TimeLimit(env, STEP_LIMITS[map_name] if max_episode_steps is None else max_episode_steps)


def register() -> None:
    """Make ``gym.make("egd/Maze2D-v0", map_name=..., dense=...)`` known. Called when this module is imported.

    ``gym.make`` keeps ``max_episode_steps`` to itself, so that there it can only shorten the map's limit.
    """
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point="rl.maze2d:make_env", kwargs={"map_name": "umaze", "dense": False})


def goal_xy(map_name: str) -> Points:
    """(2,): the centre of the map's goal cell, metres."""
    return _centre(map_name, _cells(map_name, maps.GOAL)[0])


def reward_at(positions: NDArray[Any], goal: Points, *, dense: bool = False) -> Points:
    """Positions (..., 2) -> (...): 1 within ``GOAL_RADIUS`` of the goal, else 0; dense: exp(-distance in metres)."""
    dx, dy = positions[..., 0] - goal[0], positions[..., 1] - goal[1]
    squared: Points = np.asarray(dx * dx + dy * dy, dtype=np.float64)
    return np.exp(-np.sqrt(squared)) if dense else (squared <= GOAL_RADIUS**2).astype(np.float64)


def _map(map_name: str) -> MazeMap:
    if map_name not in MAPS:
        raise UserError(f"no maze '{map_name}': {nearest(map_name, MAPS)}", key="map_name")
    return MAPS[map_name]


def _cells(map_name: str, *kinds: str) -> list[Cell]:
    """The (row, column) of every cell of these kinds, row by row."""
    return [(i, j) for i, row in enumerate(_map(map_name)) for j, kind in enumerate(row) if kind in kinds]


def _centre(map_name: str, cell: Cell) -> Points:
    """(2,): a cell's centre in metres; cells are 1 m wide. As PointMaze's ``cell_rowcol_to_xy``."""
    maze = _map(map_name)
    return np.array([cell[1] + 0.5 - len(maze[0]) / 2, len(maze) / 2 - cell[0] - 0.5])


def _cell_at(map_name: str, position: NDArray[Any]) -> Cell:
    """The cell that holds ``position`` (2,). As PointMaze's ``cell_xy_to_rowcol``."""
    maze = _map(map_name)
    return math.floor(len(maze) / 2 - position[1]), math.floor(position[0] + len(maze[0]) / 2)


def value_iteration(free: NDArray[np.bool_], goal: Cell) -> Points:
    """(rows, columns): the optimal values of a walk on the grid, 1 at the goal, 0 in walls, times 0.99 a move.

    D4RL plans so too (d4rl/pointmaze/q_iteration.py). Mazes are walled in, which is why a roll never wraps.
    """
    values = np.zeros(free.shape)
    while True:
        best = np.max([np.roll(values, (-di, -dj), (0, 1)) for di, dj in _CELL_MOVES], axis=0)
        updated = np.where(free, DISCOUNT * best, 0.0)
        updated[goal] = 1.0
        if np.array_equal(updated, values):
            return values
        values = updated


@lru_cache(maxsize=256)  # one a goal cell: 46 in the large maze
def _next_cells(map_name: str, goal: Cell) -> dict[Cell, Cell]:
    """For every free cell but the goal, the neighbour of the highest value."""
    cells = _cells(map_name, maps.GOAL, maps.RESET)
    free = np.array([[kind != 1 for kind in row] for row in _map(map_name)])
    values = value_iteration(free, goal)
    return {
        (i, j): max(((i + di, j + dj) for di, dj in _CELL_MOVES), key=lambda cell: float(values[cell]))
        for i, j in cells
        if (i, j) != goal
    }


def waypoint_controller(
    map_name: str,
    *,
    goal: NDArray[Any] | None = None,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Policy:
    """Drives to ``goal`` (2,), the map's own by default: PD control towards the centre of the next cell of the plan.

    ``noise`` is the standard deviation of the Gaussian added to the action before it is clipped to [-1, 1].
    """
    target = goal_xy(map_name) if goal is None else np.asarray(goal, dtype=np.float64)
    goal_cell = _cell_at(map_name, target)
    if goal_cell not in _cells(map_name, maps.GOAL, maps.RESET):
        raise UserError(f"goal {target.tolist()} lies in a wall of '{map_name}': take a point in a free cell")
    plan = {cell: _centre(map_name, step) for cell, step in _next_cells(map_name, goal_cell).items()}
    generator = np.random.default_rng() if rng is None else rng

    def act(observation: Array) -> Array:
        waypoint = plan.get(_cell_at(map_name, observation[:2]), target)
        force = P_GAIN * (waypoint - observation[:2]) + D_GAIN * observation[2:]
        if noise:
            force = np.clip(force, -1.0, 1.0) + noise * generator.standard_normal(2)
        return np.clip(force, -1.0, 1.0).astype(np.float32)

    return act


def generate(
    dataset_id: str,
    *,
    map_name: str = "umaze",
    steps: int = 100_000,
    noise: float = 0.5,
    seed: int = 0,
    dense: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Store ``steps`` steps of walking to random goals as the local Minari dataset ``dataset_id``; returns the id.

    One walk without a reset (d4rl: scripts/generation/generate_maze2d_datasets.py): an episode ends, truncated, when
    the ball reaches its goal, or at the map's step limit, and the next goes on from there. Observations, actions and
    rewards are float32; the rewards are those of the map's one goal, not of the goals walked to. ``seed`` also is
    the seed of the environment's reset before the first episode: replaying all actions from there repeats the data.
    ``progress`` is called with the steps done so far.
    """
    check_new_id(dataset_id)
    _map(map_name)
    if steps < 1:
        raise UserError(f"steps is {steps}: give 1 or more", key="steps")
    if noise < 0:
        raise UserError(f"noise is {noise}: a standard deviation is 0 or more", key="noise")
    env = Maze2DEnv(map_name, dense=dense)
    observations, actions, ends = _walk(env, steps, noise, seed, progress)
    rewards = reward_at(observations[1:, :2], env.goal, dense=dense).astype(np.float32)
    buffers = [
        episode_buffer(observations[a : b + 1], actions[a:b], rewards[a:b], seed=seed if a == 0 else None)
        for a, b in pairwise([0, *ends])
    ]
    metadata = {
        "algorithm_name": "waypoint controller to random goals",
        "description": f"maze2d '{map_name}', {steps} steps, action noise {noise}, seed {seed}.",
        "requirements": ["gymnasium-robotics>=1.4"],
    }
    write_dataset(dataset_id, buffers, env.observation_space, env.action_space, _spec(map_name, dense), metadata)
    env.close()
    return dataset_id


def _spec(map_name: str, dense: bool) -> EnvSpec | None:
    """The registered environment with these arguments, as ``recover_environment`` makes it again."""
    env = gym.make(ENV_ID, map_name=map_name, dense=dense)
    env.close()
    return env.spec


def _walk(
    env: Maze2DEnv, steps: int, noise: float, seed: int, progress: Callable[[int], None] | None
) -> tuple[Array, Array, list[int]]:
    """Observations (steps + 1, 4), actions (steps, 2), and the step after every episode's last, ascending."""
    rng = np.random.default_rng(seed)
    observations = np.empty((steps + 1, 4), dtype=np.float32)
    actions = np.empty((steps, 2), dtype=np.float32)
    ends: list[int] = []
    observations[0], _ = env.reset(seed=seed)
    done = 0
    while done < steps:
        goal = _random_goal(env.map_name, rng)
        policy = waypoint_controller(env.map_name, goal=goal, noise=noise, rng=rng)
        last = min(done + STEP_LIMITS[env.map_name], steps)
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


def _random_goal(map_name: str, rng: np.random.Generator) -> Points:
    """(2,): a point near the centre of a random free cell, the map's own goal cell among them."""
    cells = _cells(map_name, maps.GOAL, maps.RESET)
    cell = cells[int(rng.integers(len(cells)))]
    return _centre(map_name, cell) + rng.uniform(-POSITION_NOISE, POSITION_NOISE, 2)


register()
