"""Signs that an agent's training diverges: values that rewards cannot give, actions that leave the data's range."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from egd.samplers.watching import SamplingWarning
from egd.training.divergence import Vital
from rl.agents.base import Agent, behaviour_of, critic_of

ROWS = 256
"""Number of rows examined: the first of the data, so that the check draws no random number of the training."""
Q_SIZE = 1000.0
"""Largest |Q|, in multiples of what rewards allow, before training stops."""
CRITIC_REMEDY = "lower critic.lr or gamma, raise the ensemble, or look for outliers in the rewards"
POLICY_REMEDY = "train the denoiser longer, lower its lr, or keep clip_x0 on"
TRAINED_BY = {"critic": ("critic", "policy", "joint", "online"), "behaviour": ("denoiser", "policy", "joint")}
"""Phases that train a part, by the part's name in an agent."""


def vitals(agent: Agent, phase: str) -> dict[str, Vital]:
    """Return the vitals of the parts that the phase trains."""
    return dict([*_of_critic(agent, phase), *_of_behaviour(agent, phase)])


def _of_critic(agent: Agent, phase: str) -> Iterator[tuple[str, Vital]]:
    """Yield, for the data's actions, the largest |Q| in units of the largest reward / (1 - gamma), and the share beyond that
    limit.
    """
    critic, rows = critic_of(agent), agent.data.transitions
    if critic is None or not critic.in_reward_units or phase not in TRAINED_BY["critic"] or critic.gamma >= 1:
        return
    limit = rows.reward.abs().max() / (1 - critic.gamma)
    if limit == 0:
        return
    sizes = critic.q(rows.state[:ROWS], rows.action[:ROWS]).abs() / limit
    yield "q_size", Vital(sizes.max(), stop=Q_SIZE, remedy=CRITIC_REMEDY)
    yield "q_out_of_range", Vital((sizes > 1).float().mean(), warn=0.5, remedy=CRITIC_REMEDY)


def _of_behaviour(agent: Agent, phase: str) -> Iterator[tuple[str, Vital]]:
    """Yield the share of entries of sampled actions that exceed the data's range by over a tenth, before any clip."""
    behaviour, rows = behaviour_of(agent), agent.data.transitions
    if behaviour is None or phase not in TRAINED_BY["behaviour"] or rows.action.ndim != 2:
        return
    generator = torch.Generator(rows.state.device).manual_seed(0)
    with warnings.catch_warnings():  # about clips, which are counted here
        warnings.simplefilter("ignore", SamplingWarning)
        actions = behaviour.actions(rows.state[: ROWS // 4], 1, generator).reshape(-1, *behaviour.low.shape)  # or rows of plans
    margin = 0.1 * (behaviour.high - behaviour.low)
    beyond = (actions < behaviour.low - margin) | (actions > behaviour.high + margin) | ~actions.isfinite()
    yield "actions_out_of_range", Vital(beyond.float().mean(), warn=0.5, remedy=POLICY_REMEDY)


VITALS = ("largest_weight", "q_size", "q_out_of_range", "actions_out_of_range")
