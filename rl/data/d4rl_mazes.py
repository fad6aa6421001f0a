"""Conversion of D4RL's maze2d files to PointMaze's coordinates; ball and walls are the same.

D4RL (d4rl/pointmaze/maze_model.py) puts the wall of cell (i, j) at (i + 1, j + 1) and the ball at (1.2, 1.2) plus its
joint positions, which are what a file holds: x runs along the rows of the maze, y along its columns. PointMaze has the
origin in the middle, x along the columns and y against the rows. Sizes, mass, damping and gear of the two are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from egd.errors import UserError
from rl.envs.mazes import free_cells, grid

Array = NDArray[Any]
OFFSET = 0.7
"""1.2 - 0.5: D4RL's ball is at 1.2 plus its position, and the outer edge of the first wall is at 0.5."""


def observations_to_pointmaze(observations: Array, maze: str) -> Array:
    """Convert (N, 4) positions and velocities from D4RL's coordinates to those of ``egd/Maze2D-v0``."""
    rows = grid(maze)
    along_rows, along_columns, row_speed, column_speed = observations.T
    x = along_columns + OFFSET - len(rows[0]) / 2
    y = len(rows) / 2 - along_rows - OFFSET
    return np.stack([x, y, column_speed, -row_speed], axis=1).astype(observations.dtype)


def actions_to_pointmaze(actions: Array) -> Array:
    """Convert (N, 2) forces from D4RL's axes to those of ``egd/Maze2D-v0``."""
    return np.stack([actions[:, 1], -actions[:, 0]], axis=1).astype(actions.dtype)


def check_file(observations: Array, actions: Array, maze: str) -> None:
    """Raise UserError unless rows have 4 and 2 entries, as in D4RL's maze2d files, and every position is in a free cell of this
    maze.
    """
    if observations.shape[1:] != (4,) or actions.shape[1:] != (2,):
        raise UserError(
            f"rows of {observations.shape[1]} observations and {actions.shape[1]} actions are no maze2d data: it has 4 and 2; "
            "import the file under another id"
        )
    rows = grid(maze)
    free = np.zeros((len(rows), len(rows[0])), dtype=bool)
    free[tuple(zip(*free_cells(maze), strict=True))] = True
    i, j = np.floor(observations[:, :2] + OFFSET).astype(int).T
    inside = (i >= 0) & (j >= 0) & (i < free.shape[0]) & (j < free.shape[1])
    lost = ~(inside & free[np.where(inside, i, 0), np.where(inside, j, 0)])
    if lost.any():
        row = int(np.argmax(lost))
        raise UserError(
            f"{lost.sum()} of {len(lost)} positions lie in a wall of '{maze}', the first of them in row {row}, "
            f"{observations[row, :2].tolist()}: is it D4RL's file of another maze, or no file of D4RL's? "
            "Import it under the id of its own task, or under one of no task"
        )
