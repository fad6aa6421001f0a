"""Interface of an agent to the rest of the program: phases to be trained, and policies to be rolled out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from egd.config.base import EXECUTION, marked
from egd.runs.code_digest import Sources, UnknownCode
from egd.runs.phase import Phase, key_of
from egd.training.learners import HasComputing
from rl.config import VARIES, RunConfig
from rl.critics.base import Critic
from rl.data.transitions import OfflineData
from rl.evaluation import diagnostics
from rl.parts.action_sampling import ActionSampler, Randomness
from rl.parts.base import Part, RunContext
from rl.parts.behaviour import Behaviour
from rl.parts.calibration import AdvantageCalibration
from rl.parts.guidance import Guidance
from rl.parts.policies import Act, AgentPolicy
from rl.tasks import Task

__all__ = ["Act", "Agent"]

CODE = Sources("rl.runs.job")
AFTERWARDS = ("method", "evaluation", "checkpoint_every", "log_every")
"""Sections of a recipe that do not influence training."""


class Agent(ABC):
    """Method on one task with one seed: its networks, their training, and its policies.

    An agent is a file in ``rl.agents`` and a line in its table. ``Config`` defines its recipe. It consists of ``parts``, which
    define their own training, and acts by ``named_policies``; a policy with guidance scales represents several, ``name@scale``.
    """

    Config: ClassVar[type[RunConfig]]
    learns_online: ClassVar[bool] = False
    """Whether training needs the environment."""
    calibration: AdvantageCalibration | None = None
    """Part that estimates the behaviour model's variances and the critic's advantages, if there is one."""
    guidance: Guidance | None = None
    """Guided policies, if there are any."""

    def __init__(self, config: Any, data: OfflineData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.context = RunContext(data, config.seed, device)

    @classmethod  # noqa: B027
    def check(cls, config: Any) -> None:
        """Raise UserError for invalid settings that the recipe's types do not reveal, before anything is trained."""

    @classmethod
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        """Return the settings that runs trained together must share: all that are not marked as varying."""
        tree: dict[str, Any] = config.model_dump(mode="json", exclude=marked(config, VARIES))
        return tree

    # -- what an agent gives ------------------------------------------------------------------------------

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Return the parts to be trained, in order."""

    @abstractmethod
    def named_policies(self) -> Mapping[str, AgentPolicy]:
        """Return the policies by name, made from the parts in their present state."""

    @property
    def headline(self) -> str:
        """Name of the headline policy, which represents the method in tables and figures: ``name`` or ``name@scale``."""
        return "policy" if self.guidance is None else self.guidance.own("guided")

    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        """Compute diagnostics of calibration and guidance for ``summary.json``."""
        if self.guidance is not None:
            return diagnostics.of_guidance(self.guidance, generator)
        return {} if self.calibration is None else diagnostics.of_values(self.calibration, generator)

    def warnings(self, diagnostics: Mapping[str, Any]) -> list[str]:
        """Return warnings for users about the diagnostics."""
        return [] if self.guidance is None else self.guidance.warnings(diagnostics)

    def save_figures(self, folder: Path, title: str, task: Task, rollouts: Any) -> None:
        """Save figures to the folder, from the rollouts of the evaluation."""
        from rl.evaluation import figures  # matplotlib is not needed to act

        if self.guidance is not None:
            figures.draw_guided(self.guidance, folder, title, task, rollouts)
        elif self.calibration is not None:
            figures.draw(self.calibration, folder, title, task, rollouts)

    # -- acting --------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """Number of entries of a sample, an action: the normal numbers that one draw takes."""
        return self.context.actions

    def policies(self) -> dict[str, float | None]:
        """Return the policies' own guidance scales by name; None for a policy without a scale."""
        return {name: policy.scale for name, policy in self.named_policies().items()}

    def scales(self, only: Sequence[float] | None = None) -> dict[str, list[float]]:
        """Return the guidance scales at which each policy is evaluated, or ``only`` these; [] for a policy without any."""
        found = {name: policy.scales(only) for name, policy in self.named_policies().items()}
        return {name: scales for name, scales in found.items() if scales is not None}

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """Return the function by which a policy acts; row i of its states has its own one of ``scales``."""
        return self.named_policies()[name].act(scales, randomness)

    def acting(self, seed: int) -> Act:
        """Return the function by which the headline policy acts at its own scale, with random numbers of that seed."""
        name, _, scale = self.headline.partition("@")
        return self.policy(name, [float(scale)] if scale else [], torch.Generator(self.device).manual_seed(seed))

    def modules(self) -> dict[str, nn.Module]:
        """Return, by name, the modules that the policies evaluate and that differ between runs of a recipe."""
        own = [policy.networks() for policy in self.named_policies().values()]
        if all(own):
            return {name: module for networks in own for name, module in networks.items()}
        return {name: module for part in self.parts() for name, module in part.networks().items()}

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Return the phases of the parts, with learners set to the recipe's precision. All cache keys are made here.

        The weights of a phase depend on the settings of its part, on the members of the transitions that it learns from, on
        the parts that it comes after, and on code: that of the packages, and a user's own where it is part of the learner or
        named in the settings. A phase of a user's own agent or part is taken to depend on all data and on the whole recipe,
        because its code may read anything.
        """
        return [self._phase(part) for part in self.parts()]

    def evaluation_phase(self, phases: Sequence[Phase]) -> Phase:
        """Return the last phase that the headline policy depends on, in which evaluations in mid-training are made."""
        wanted = self.named_policies()[self.headline.partition("@")[0]].part.name
        return next((phase for phase in phases if phase.name == wanted), phases[-1])

    def ready(self, phase: str, generator: torch.Generator) -> None:
        """Prepare the policies for use in the middle of a phase."""
        for part in self.parts():
            part.prepare(phase, generator)

    def _phase(self, part: Part) -> Phase:
        for each in (*part.after, part):
            learner = each.learner
            if isinstance(learner, HasComputing):
                learner.computing = self.config.computing
        key = None
        with suppress(UnknownCode):  # such as a notebook's: then every run trains the phase itself
            key = self._cache_key(part) if part.reusable else None
        every = part.checkpoint_every(self.config.checkpoint_every)
        return Phase(part.name, part.steps, part.learner, cache_key=key, checkpoint_every=every, hook_first=part.hook_first)

    def _cache_key(self, part: Part) -> dict[str, Any]:
        """Return everything that decides the weights of a part. Raise UnknownCode where its code cannot be identified."""
        config = self.config
        apart: tuple[object, ...] = (self, ActionSampler)  # a phase that samples has the sampler among its settings
        apart += () if isinstance(part.learner, Part) else (part,)  # the learner is the part's own
        return {
            "phase": part.name,
            "steps": part.steps,
            "seed": config.seed,
            "torch": str(torch.__version__),
            "computing": {"device": self.device.type, "precision": config.precision, "compile": config.compile},
            "code": CODE.digest(),
            "learner": CODE.names(part.learner, apart_from=apart),
            "settings": CODE.settings(dict(part.settings)),
            "data": self.data.fingerprint(*part.members),
            "after": {before.name: key_of(self._cache_key(before)) for before in part.after},
            "own": self._own(part),
        }

    def _own(self, part: Part) -> Any:
        """Return what a phase of a user's own agent or part depends on in addition; None for the library's."""
        theirs = {*CODE.outside(Agent, RunConfig, Part, nn.Module)}
        own = [name for name in CODE.outside(type(self), type(self.config), type(part)) if name not in theirs]
        recipe = self.config.model_dump(mode="json", exclude=marked(self.config, EXECUTION) | dict.fromkeys(AFTERWARDS, True))
        return {"code": own, "recipe": CODE.settings(recipe), "data": self.data.fingerprint()} if own else None


@runtime_checkable
class HasCritic(Protocol):
    """An agent that learns values Q and V."""

    critic: Critic


@runtime_checkable
class HasBehaviour(Protocol):
    """An agent with a diffusion model of the behaviour policy."""

    behaviour: Behaviour


def critic_of(agent: Agent) -> Critic | None:
    """Return the agent's critic, or None where it has none of the library's kind."""
    return agent.critic if isinstance(agent, HasCritic) and isinstance(agent.critic, Critic) else None


def behaviour_of(agent: Agent) -> Behaviour | None:
    """Return the agent's model of the behaviour policy, or None where it has none of the library's kind."""
    return agent.behaviour if isinstance(agent, HasBehaviour) and isinstance(agent.behaviour, Behaviour) else None
