"""Policy of a trained agent as a function of tensors that can be traced."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from egd.config.base import read_yaml
from egd.config.trust import trusting
from egd.errors import UserError, nearest
from egd.runs.folder import RunFolder
from egd.runs.recipe import pick_device
from egd.runs.summaries import Summary
from egd.samplers.watching import SamplingWarning
from egd.tracing import Folding, trace
from rl.agents.base import Agent
from rl.parts.action_sampling import GivenNoise
from rl.runs.loading import read_config, restore


class PolicyModule(nn.Module):
    """Policy of a trained agent as a function of tensors: the evaluation's own code, with the noise as an input.

    ``policy`` is one of the agent's: ``guided``, a variant or ``behaviour``, or ``policy`` of an agent without guidance; by
    default the headline policy. ``omega`` is its guidance scale, by default the recipe's. ``draws`` (M) is the number of normal
    draws per state: one for each sampled action (``candidates``), and one for each support sample. Raises UserError for a
    policy that does not exist, a negative scale, or a policy that draws random numbers of another kind.
    """

    def __init__(self, agent: Agent, policy: str | None = None, omega: float | None = None) -> None:
        super().__init__()
        self.policy = agent.headline.partition("@")[0] if policy is None else policy
        self.omega = _scale(agent, self.policy, omega)
        self._agent = (agent,)  # the tuple hides it from nn.Module
        self.networks = nn.ModuleDict(agent.modules())
        self.observations, self.actions = len(agent.data.state_mean), len(agent.data.action_low)
        self.entries = agent.entries
        self.draws = self._draws()

    @property
    def agent(self) -> Agent:
        """Agent that the policy belongs to."""
        return self._agent[0]

    @torch.no_grad()
    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Compute actions (N, A), clipped to the data's range, from observations (N, S) of the environment and standard normal
        noise (N, M, E).

        E is the agent's ``entries``: A, except for plans.
        """
        return self._act(observation, GivenNoise(noise)).clamp(self.agent.data.action_low, self.agent.data.action_high)

    def _act(self, observation: Tensor, noise: GivenNoise) -> Tensor:
        scales = [] if self.agent.policies()[self.policy] is None else [self.omega]
        act = self.agent.policy(self.policy, scales, noise)
        scale_index = torch.zeros(len(observation), dtype=torch.long, device=observation.device)
        return act(self.agent.data.standardise(observation), scale_index)

    @torch.no_grad()
    def _draws(self) -> int:
        device = self.agent.device
        endless = GivenNoise(torch.zeros(1, 1, self.entries, device=device).expand(1, 1_000_000_000, self.entries))
        with _naming(self.policy), Folding(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # with equal noises support samples coincide
            self._act(torch.zeros(1, self.observations, device=device), endless)
        return endless.used

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Return zeros in the shapes of the inputs, by name, for a batch of that size."""
        shapes = {"observation": (batch, self.observations), "noise": (batch, self.draws, self.entries)}
        return {name: torch.zeros(shape, device=self.agent.device) for name, shape in shapes.items()}

    def graph(self, batch: int, decompositions: Mapping[Any, Any] | None = None) -> fx.GraphModule:
        """Return ``forward`` for a fixed batch size as one flat graph, with a copy of the weights.

        Raises UserError for a policy whose operations depend on its values, as those of ``second_order`` do.
        """
        with _naming(self.policy):
            return trace(self, self.inputs(batch), decompositions)


@contextmanager
def _naming(policy: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        remedy = "take another policy; the agent's policy() runs every one as it is"
        raise UserError(f"policy '{policy}' cannot be one graph: {error}; {remedy}", key="--policy") from error


def _scale(agent: Agent, policy: str, omega: float | None) -> float:
    policies = agent.policies()
    if policy not in policies:
        raise UserError(f"the run has no policy '{policy}'; {nearest(policy, policies)}", key="--policy")
    own = policies[policy]
    if own is None:
        if omega:
            raise UserError(f"'{policy}' has no guidance scale; leave it out, or choose another policy", key="--omega")
        return 0.0
    if omega is not None and not 0 <= omega < math.inf:
        raise UserError(f"{omega:g} is no guidance scale: it is finite and not negative", key="--omega")
    return own if omega is None else omega


def load_module(
    run: Path | str,
    policy: str | None = None,
    omega: float | None = None,
    device: str = "cpu",
    *,
    trust_code: bool = False,
) -> PolicyModule:
    """Load a policy of a complete run from its folder OUT/<task>/seed-<n>; its dataset must be local.

    Raises UserError where there is no such folder or the run is not complete, where its settings name untrusted code without
    ``trust_code``, and as ``PolicyModule`` does.
    """
    folder = RunFolder(Path(run))
    if not folder.config.exists():
        raise UserError(f"{run} is not a run folder: it has no config.yaml; give OUT/<task>/seed-<n>")
    tree = read_yaml(folder.config)
    if tree.get("experiment") != "offline_rl":
        raise UserError(f"{run} is a run of '{tree.get('experiment')}'; only those of offline_rl have policies")
    if folder.read_summary(Summary) is None:
        raise UserError(f"{run} is not complete; finish it with egd run --resume")
    chosen = torch.device(pick_device(device))
    with trusting(trust_code, folder.path):
        config = read_config(folder).model_copy(update={"device": chosen.type})
        agent, _ = restore(config, folder, chosen)
        return PolicyModule(agent, policy, omega)
