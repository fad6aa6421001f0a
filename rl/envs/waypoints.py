"""Controllers that drive the ball through a maze: a plan on the grid by value iteration, and PD control along it.

D4RL's maze2d data comes from such a controller (d4rl/pointmaze/waypoint_controller.py): gains 10 on metres and -1 on
metres a second, force clipped to [-1, 1]. Two ways to follow the plan are offered:

* ``waypoint_controller`` aims at the centre of the plan's next cell after the ball's. It is stateless and cuts corners.
* ``D4RLController`` is D4RL's. It plans the way once, as jittered centres of cells, and aims at the next point when the
  ball is within 0.1 m of the current one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from egd.errors import UserError
from rl.envs.mazes import MOVES, Cell, Points, cell_at, centre, free_cells, goal_xy, grid

Array: TypeAlias = NDArray[np.float32]
Policy: TypeAlias = Callable[[Array], Array]
"""Maps an observation (4,) to an action (2,) in [-1, 1]."""

P_GAIN, D_GAIN = 10.0, -1.0
"""Gains of D4RL's controller, on metres and on metres a second."""
ARRIVAL_RADIUS = 0.1
"""Distance in metres at which a point of the way counts as reached: ``solve_thresh`` of D4RL's controller."""
WAYPOINT_JITTER = 0.1
"""Half width, in metres, of the uniform jitter of intermediate points: D4RL subtracts up to 0.2 from points 0.1 off."""
DISCOUNT = 0.99


def value_iteration(free: NDArray[np.bool_], goal: Cell) -> Points:
    """Compute the optimal values (rows, columns) of a walk on the grid: 1 at the goal, 0 in walls, discounted by 0.99 per move.

    D4RL plans in the same way (d4rl/pointmaze/q_iteration.py). Mazes are walled in, so ``np.roll`` never wraps around.
    """
    values = np.zeros(free.shape)
    while True:
        best = np.max([np.roll(values, (-di, -dj), (0, 1)) for di, dj in MOVES], axis=0)
        updated = np.where(free, DISCOUNT * best, 0.0)
        updated[goal] = 1.0
        if np.array_equal(updated, values):
            return values
        values = updated


@lru_cache(maxsize=256)  # one entry per goal cell: 46 in the large maze
def next_cells(maze: str, goal: Cell) -> dict[Cell, Cell]:
    """Return, for every free cell but the goal, the neighbour of the highest value."""
    free = np.array([[kind != 1 for kind in row] for row in grid(maze)])
    values = value_iteration(free, goal)
    return {
        (i, j): max(((i + di, j + dj) for di, dj in MOVES), key=lambda cell: float(values[cell]))
        for i, j in free_cells(maze)
        if (i, j) != goal
    }


def _goal_cell(maze: str, goal: Points) -> Cell:
    cell = cell_at(maze, goal)
    if cell not in free_cells(maze):
        raise UserError(f"goal {goal.tolist()} lies in a wall of '{maze}': take a point in a free cell")
    return cell


def pd_force(observation: Array, target: Points) -> Points:
    """Compute the force (2,) towards ``target`` (2,), clipped to [-1, 1]."""
    return np.clip(P_GAIN * (target - observation[:2]) + D_GAIN * observation[2:], -1.0, 1.0)


def _noisy(force: Points, noise: float, rng: np.random.Generator) -> Array:
    if noise:
        force = np.clip(force + noise * rng.standard_normal(2), -1.0, 1.0)
    return force.astype(np.float32)


def waypoint_controller(
    map_name: str,
    *,
    goal: NDArray[Any] | None = None,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Policy:
    """Return a policy that drives to ``goal`` (2,), by default the map's own, by PD control towards the centre of the plan's
    next cell.

    ``noise`` is the standard deviation of the Gaussian added to the action before it is clipped to [-1, 1].
    """
    target = goal_xy(map_name) if goal is None else np.asarray(goal, dtype=np.float64)
    plan = {cell: centre(map_name, step) for cell, step in next_cells(map_name, _goal_cell(map_name, target)).items()}
    generator = np.random.default_rng() if rng is None else rng

    def act(observation: Array) -> Array:
        waypoint = plan.get(cell_at(map_name, observation[:2]), target)
        return _noisy(pd_force(observation, waypoint), noise, generator)

    return act


class D4RLController:
    """Policy for one walk that follows the plan as D4RL does, from the cell of its first observation.

    Differences from D4RL: the last point is ``goal`` itself, whereas D4RL drives to a fixed point of the goal's cell; and the
    intermediate points lie around the cells' centres, whereas D4RL's lie around points 0.1 m off.
    """

    def __init__(
        self,
        map_name: str,
        *,
        goal: NDArray[Any] | None = None,
        noise: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._map_name, self._noise = map_name, noise
        self._goal = goal_xy(map_name) if goal is None else np.asarray(goal, dtype=np.float64)
        self._plan = next_cells(map_name, _goal_cell(map_name, self._goal))
        self._rng = np.random.default_rng() if rng is None else rng
        self._way: list[Points] | None = None

    def __call__(self, observation: Array) -> Array:
        """Return the force (2,) towards the next point of the way, from the observation (4,)."""
        if self._way is None:
            self._way = self._points(cell_at(self._map_name, observation[:2]))
        force = pd_force(observation, self._way[0])
        if len(self._way) > 1 and math.dist(observation[:2], self._way[0]) < ARRIVAL_RADIUS:
            self._way.pop(0)
        return _noisy(force, self._noise, self._rng)

    def _points(self, cell: Cell) -> list[Points]:
        """Draw the points of the way: jittered centres of the cells after ``cell``, then the goal."""
        points: list[Points] = []
        while (cell := self._plan.get(cell, cell)) in self._plan:
            points.append(centre(self._map_name, cell) + self._rng.uniform(-WAYPOINT_JITTER, WAYPOINT_JITTER, 2))
        return [*points, self._goal]
