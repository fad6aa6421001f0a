"""Rules of termination of episodes, for environments whose rule is known."""

from __future__ import annotations

import torch
from torch import Tensor

import rl.envs.antmaze
from egd.errors import UserError
from rl.data.transitions import OfflineData
from rl.online.transition_codec import Rule
from rl.tasks import Task

HEALTHY = {"Hopper": ((0.7, float("inf")), 0.2), "Walker2d": ((0.8, 2.0), 1.0)}
"""Range of the torso's height, and its largest angle: ``healthy_z_range`` and ``healthy_angle_range`` of gymnasium."""
NEVER = ("HalfCheetah", "AdroitHand", "egd/Maze2D")
ANTMAZE = "egd/AntMaze"


def known(task: Task) -> None:
    """Raise UserError unless the rule by which an episode of the task ends is known."""
    env = task.env_id or ""
    if not (env.startswith((*NEVER, ANTMAZE)) or env.partition("-")[0] in HEALTHY):
        raise UserError(
            f"it is not known when an episode of {task.name} ends; use terminal: generated", key="online.generator.terminal"
        )


def rule(task: Task, data: OfflineData) -> Rule:
    """Return the rule of a task's environment, for standardised states. Raises UserError where it is not known."""
    known(task)
    env = task.env_id or ""
    if env.startswith(NEVER):
        return lambda state: torch.zeros_like(state[:, 0])
    if env.startswith(ANTMAZE):
        goal = torch.as_tensor(rl.envs.antmaze.goal_xy(task.env_kwargs["map_name"])).to(data.state_mean)
        return lambda state: ((_raw(state, data)[:, :2] - goal).norm(dim=1) <= rl.envs.antmaze.GOAL_RADIUS).to(state.dtype)
    (low, high), lean = HEALTHY[env.partition("-")[0]]

    def fallen(state: Tensor) -> Tensor:
        z, angle = _raw(state, data)[:, :2].unbind(1)
        return 1 - ((z > low) & (z < high) & (angle.abs() < lean)).to(state.dtype)

    return fallen


def _raw(state: Tensor, data: OfflineData) -> Tensor:
    return state * data.state_std + data.state_mean
