"""Quantities by which diverging training is seen, of agents whose parts are known."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.runs.vitals import vitals
from tests.rl.test_evaluation import maze_agent


def test_values_beyond_what_rewards_allow_are_counted() -> None:
    agent = maze_agent(0)
    limit = float(agent.data.transitions.reward.abs().max()) / (1 - agent.critic.gamma)
    sizes = torch.tensor([0.5, -0.9, 1.5, -3.0]).repeat(10) * limit
    agent.critic.q = lambda state, action: sizes  # type: ignore[method-assign]
    found = vitals(agent, "critic")
    torch.testing.assert_close(found["q_size"].value, torch.tensor(3.0))
    torch.testing.assert_close(found["q_out_of_range"].value, torch.tensor(0.5))
    assert set(vitals(agent, "denoiser")) == {"actions_out_of_range"}
    assert vitals(agent, "calibration") == {}


def test_samples_beyond_the_range_of_the_data_are_counted_before_the_clip() -> None:
    agent = maze_agent(0)
    low, high = agent.behaviour.low, agent.behaviour.high

    def actions(states: Tensor, k: int, generator: torch.Generator) -> Tensor:
        rows = torch.stack([low, high, high + 0.05 * (high - low), 2 * high - low]).repeat(len(states) // 4, 1)
        return rows[:, None]

    agent.behaviour.actions = actions  # type: ignore[method-assign, assignment]
    states = agent.data.transitions.state[:40]
    assert len(states) == 40
    torch.testing.assert_close(vitals(agent, "denoiser")["actions_out_of_range"].value, torch.tensor(0.25))


def test_a_look_draws_nothing_from_the_trainings_random_numbers() -> None:
    agent = maze_agent(0)
    before = torch.get_rng_state()
    first, again = (vitals(agent, "joint") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert [float(v.value) for v in first.values()] == [float(v.value) for v in again.values()]
