"""Mazes as grids, named as in D4RL or drawn in text, and the coordinates of their cells.

Coordinates are PointMaze's: metres, origin in the middle of the maze, x along the columns, y against the rows.
A ``maze`` is a name of ``MAPS``, or the drawing of a maze, as D4RL writes it::

    #####
    #GOO#      # a wall, G the goal, O (or a space, or .) free
    ###O#      rows on lines of their own, or with \\ between them
    #OOO#
    #####
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from egd.errors import UserError, nearest
from egd.files import read_regular
from rl.envs.robotics import maps

Points: TypeAlias = NDArray[np.float64]
MazeMap: TypeAlias = list[list[int | str]]
Cell: TypeAlias = tuple[int, int]

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
STEP_LIMITS = {"umaze": 300, "medium": 600, "large": 800}
"""D4RL's ``max_episode_steps``, by maze."""
STEPS_A_MOVE = 50
"""Step limit of a drawn maze, per move of its longest shortest path: D4RL's limits are 50, 55 and 42 steps per move."""


def _with_goal(maze: list[list[int]], goal: Cell) -> MazeMap:
    """Return ``maze`` with 'g' in the goal cell and 'r', a possible start, in all other free cells."""
    return [
        [1 if wall else maps.GOAL if (i, j) == goal else maps.RESET for j, wall in enumerate(row)] for i, row in enumerate(maze)
    ]


MAPS: dict[str, MazeMap] = {
    "umaze": _with_goal(maps.U_MAZE, (1, 1)),
    "medium": _with_goal(maps.MEDIUM_MAZE, (6, 6)),
    "large": _with_goal(maps.LARGE_MAZE, (7, 9)),
}
"""Mazes by name, with the goal where D4RL's ``U_MAZE``, ``MEDIUM_MAZE`` and ``LARGE_MAZE`` have their 'G'."""


def grid(maze: str) -> MazeMap:
    """Return the maze's rows of 1 (wall), 'g' (the goal) and 'r' (free, a possible start). Raises UserError where it
    is no maze.
    """
    if maze in MAPS:
        return MAPS[maze]
    if not re.search(r"[#\\\n]", maze):
        raise UserError(f"no maze '{maze}': {nearest(maze, MAPS)}, or a drawing (# wall, O free, G goal)", key="map_name")
    return _drawn(maze)


def read_drawing(map_or_file: str) -> str:
    """Return the drawing itself, or the one in a text file. Raises UserError where it is neither."""
    if re.search(r"[#\\\n]", map_or_file):
        return map_or_file
    try:
        return read_regular(Path(map_or_file), 2**20).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{map_or_file}' is neither a drawing of a maze (# wall, O free, G goal) nor a text file with one: {error}",
            key="map",
        ) from error


@lru_cache(maxsize=16)
def _drawn(text: str) -> MazeMap:
    rows = [row.rstrip() for row in re.split(r"[\\\n]", text.strip("\\\n\r")) if row.strip()]
    if strange := sorted(set("".join(rows)) - set("#GO. 0")):
        raise UserError(f"a maze is drawn with # (wall), O (free) and G (goal), not with {' '.join(strange)}", key="map")
    if len(lengths := sorted({len(row) for row in rows})) != 1:
        some = " or ".join(map(str, lengths)) or "no"
        raise UserError(f"the rows of the maze have {some} cells: draw them equally long", key="map")
    if set(rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)) != {"#"}:
        raise UserError("the maze has a gap in its outer wall: draw # all around it", key="map")
    found: MazeMap = [[1 if c == "#" else maps.GOAL if c == "G" else maps.RESET for c in row] for row in rows]
    if (goals := sum(row.count(maps.GOAL) for row in found)) != 1:
        raise UserError(f"the maze has {goals} goals: draw one G", key="map")
    _check_connected(found)
    return found


def _check_connected(found: MazeMap) -> None:
    """Raise UserError unless there is a free cell beside the goal, and every free cell can be reached from it."""
    goal = next((i, j) for i, row in enumerate(found) for j, kind in enumerate(row) if kind == maps.GOAL)
    free = {(i, j) for i, row in enumerate(found) for j, kind in enumerate(row) if kind != 1}
    if free == {goal}:
        raise UserError("the maze has no free cell beside the goal: draw some O", key="map")
    if cut_off := sorted(free - distances(free, goal).keys()):
        i, j = cut_off[0]
        raise UserError(f"the cell in row {i + 1}, column {j + 1} of the maze cannot be reached from the goal", key="map")


def distances(free: set[Cell], start: Cell) -> dict[Cell, int]:
    """Return the number of moves from ``start`` to every cell of ``free`` that can be reached."""
    found, edge = {start: 0}, [start]
    for cell in edge:
        for di, dj in MOVES:
            beside = (cell[0] + di, cell[1] + dj)
            if beside in free and beside not in found:
                found[beside] = found[cell] + 1
                edge.append(beside)
    return found


def step_limit(maze: str) -> int:
    """Return the steps of an episode: D4RL's limit, or ``STEPS_A_MOVE`` times the longest shortest path of a drawn maze."""
    if maze in STEP_LIMITS:
        return STEP_LIMITS[maze]
    free = set(cells(maze, maps.GOAL, maps.RESET))
    return STEPS_A_MOVE * max(max(distances(free, start).values()) for start in free)


def cells(maze: str, *kinds: str) -> list[Cell]:
    """Return the (row, column) of every cell of these kinds, row by row."""
    return [(i, j) for i, row in enumerate(grid(maze)) for j, kind in enumerate(row) if kind in kinds]


def free_cells(maze: str) -> list[Cell]:
    """Return the (row, column) of every cell without a wall, the goal cell included."""
    return cells(maze, maps.GOAL, maps.RESET)


def centre(maze: str, cell: Cell) -> Points:
    """Return a cell's centre (2,) in metres, as PointMaze's ``cell_rowcol_to_xy``; cells are 1 m wide."""
    rows = grid(maze)
    return np.array([cell[1] + 0.5 - len(rows[0]) / 2, len(rows) / 2 - cell[0] - 0.5])


def cell_at(maze: str, position: NDArray[Any]) -> Cell:
    """Return the cell that contains ``position`` (2,), as PointMaze's ``cell_xy_to_rowcol``."""
    rows = grid(maze)
    return math.floor(len(rows) / 2 - position[1]), math.floor(position[0] + len(rows[0]) / 2)


def goal_xy(maze: str) -> Points:
    """Return the centre of the maze's goal cell, (2,), in metres."""
    return centre(maze, cells(maze, maps.GOAL)[0])
