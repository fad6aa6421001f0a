"""What shows that an agent's training goes astray: values that rewards cannot give, actions that leave the data's range."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from egd.samplers.watching import SamplingWarning
from egd.training.divergence import Vital
from rl.agents.base import Agent
from rl.critics import Critic
from rl.parts.behaviour import Behaviour

ROWS = 256
"""Of the data, the first ones, so that a look draws no random number of the training's."""
Q_SIZE = 1000.0
"""Times what rewards allow, from which a critic is lost."""
CRITIC_REMEDY = "lower critic.lr or gamma, raise the ensemble, or look for outliers in the rewards"
POLICY_REMEDY = "train the denoiser longer, lower its lr, or keep clip_x0 on"
TRAINED_BY = {"critic": ("critic", "policy", "joint", "online"), "behaviour": ("denoiser", "policy", "joint")}
"""The phases that train a part, by what an agent calls it."""


def vitals(agent: Agent, phase: str) -> dict[str, Vital]:
    """Of the parts that the phase trains."""
    return dict([*_of_critic(agent, phase), *_of_behaviour(agent, phase)])


def _of_critic(agent: Agent, phase: str) -> Iterator[tuple[str, Vital]]:
    """Of data's actions: the largest |Q|, in units of the largest reward / (1 - gamma), and the share beyond that."""
    critic, rows = getattr(agent, "critic", None), agent.data.transitions
    if not isinstance(critic, Critic) or not critic.in_reward_units or phase not in TRAINED_BY["critic"] or critic.gamma >= 1:
        return
    limit = rows.reward.abs().max() / (1 - critic.gamma)
    if limit == 0:
        return
    sizes = critic.q(rows.state[:ROWS], rows.action[:ROWS]).abs() / limit
    yield "q_size", Vital(sizes.max(), stop=Q_SIZE, remedy=CRITIC_REMEDY)
    yield "q_out_of_range", Vital((sizes > 1).float().mean(), warn=0.5, remedy=CRITIC_REMEDY)


def _of_behaviour(agent: Agent, phase: str) -> Iterator[tuple[str, Vital]]:
    """The share of entries of sampled actions that are beyond the data's, before any clip, by more than their range's tenth."""
    behaviour, rows = getattr(agent, "behaviour", None), agent.data.transitions
    if not isinstance(behaviour, Behaviour) or phase not in TRAINED_BY["behaviour"] or rows.action.ndim != 2:
        return
    generator = torch.Generator(rows.state.device).manual_seed(0)
    with warnings.catch_warnings():  # of what is counted here
        warnings.simplefilter("ignore", SamplingWarning)
        actions = behaviour.actions(rows.state[: ROWS // 4], 1, generator).reshape(-1, *behaviour.low.shape)  # or rows of plans
    margin = 0.1 * (behaviour.high - behaviour.low)
    beyond = (actions < behaviour.low - margin) | (actions > behaviour.high + margin) | ~actions.isfinite()
    yield "actions_out_of_range", Vital(beyond.float().mean(), warn=0.5, remedy=POLICY_REMEDY)


VITALS = ("largest_weight", "q_size", "q_out_of_range", "actions_out_of_range")
