"""D4RL's antmaze for evaluation: one start corner, one fixed goal, reward 1 and a terminal state on reaching it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rl.envs.robotics import gymnasium_robotics, maps

ENV_ID = "egd/AntMaze-v0"
GOAL_RADIUS = 0.45
"""Radius of the goal in metres, gymnasium-robotics' value; D4RL's is 0.5."""


def _fixed(walls: list[list[Any]], start: tuple[int, int], goal: tuple[int, int]) -> list[list[Any]]:
    """Return the maze with one reset cell and one goal cell, each given as (row, column)."""
    cells: list[list[Any]] = [[1 if cell == 1 else 0 for cell in row] for row in walls]
    cells[start[0]][start[1]], cells[goal[0]][goal[1]] = "r", "g"
    return cells


MAPS = {
    "umaze": _fixed(maps.U_MAZE, (1, 1), (3, 1)),
    "medium": _fixed(maps.MEDIUM_MAZE, (1, 1), (6, 6)),
    "large": _fixed(maps.LARGE_MAZE, (1, 1), (7, 9)),
}


def make_env(map_name: str = "umaze", **kwargs: Any) -> gym.Env[Any, Any]:
    """Return AntMaze-v4, the version of the data, with that map; observations stay a dict with achieved_goal and
    desired_goal.
    """
    gym.register_envs(gymnasium_robotics)
    env = gym.make("AntMaze_UMaze-v4", maze_map=MAPS[map_name], continuing_task=False, max_episode_steps=-1, **kwargs)
    maze: Any = env.unwrapped
    maze.position_noise_range = 0.0  # else the goal, which policies do not observe, varies within a metre
    return env


def goal_xy(map_name: str) -> Any:
    """Return the centre of the goal cell, (2,), in metres."""
    env = make_env(map_name)
    try:
        return env.unwrapped.maze.unique_goal_locations[0]  # type: ignore[attr-defined]
    finally:
        env.close()


def register() -> None:
    """Register ``egd/AntMaze-v0`` with gymnasium."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point="rl.envs.antmaze:make_env")
