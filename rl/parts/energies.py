"""Intermediate energies of a trained critic and behaviour model: closed forms, and networks trained on an objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.config.catalogue import OBJECTIVES, POSTERIORS
from egd.config.components import build
from egd.config.trial import Trial
from egd.networks.mlp import EnergyMLP, EnergyNetwork
from egd.objectives.base import energy_network, is_dimensionless
from egd.runs.safe_names import module_name
from egd.training import batched
from egd.training.learners import EnergyLearner, Fit, Metrics
from egd.types import Context, HasTargets, TimedEnergy
from rl.config import GuidanceConfig, GuidedConfig
from rl.parts.action_sampling import BehaviourSupport, Randomness
from rl.parts.base import Part, RunContext
from rl.parts.calibration import AdvantageCalibration
from rl.parts.guidance_settings import OF_NETWORK, component_parts, group_size
from rl.parts.support_actions import SupportTable


def energy_components(guidance: GuidanceConfig, calibration: AdvantageCalibration, generator: Randomness) -> dict[str, Any]:
    """Return the components that an energy may ask for, by name."""
    behaviour, moments = calibration.behaviour, calibration.moments[guidance.clip_x0]
    denoiser = behaviour.denoiser(guidance.clip_x0, guidance.straight_through)
    of_posterior = {"denoiser": denoiser, "schedule": behaviour.schedule, "moments": moments}
    return {
        **of_posterior,
        "energy": calibration.energy(guidance.energy_scale),
        "posterior": build(POSTERIORS, guidance.posterior.spec, of_posterior, "guidance.posterior"),
        "support": BehaviourSupport(behaviour.sampler, denoiser, generator),
        "beta": guidance.beta,
    }


class TrainedEnergy(Part):
    """Energy network E_Theta(x_t, t, s), trained on the objective of the guidance called ``owner``.

    ``network`` makes the network, by default an ``EnergyMLP`` of actions and states. An objective that takes K samples of a
    state gets them from ``support`` or, without support, K rows of the data.
    """

    def __init__(
        self,
        context: RunContext,
        owner: str,
        config: GuidedConfig,
        calibration: AdvantageCalibration,
        support: SupportTable | None = None,
        network: Callable[[], EnergyNetwork] | None = None,
    ) -> None:
        e, guidance, behaviour = config.energy_network, config.guidances[owner], calibration.behaviour
        k = group_size(guidance)
        self.name, self.guidance, self.steps = f"energy_{owner}", guidance, config.energy_steps
        self.after = [calibration, *([support] if k and support is not None else [])]
        self.settings = {"network": e.model_dump(mode="json"), **guidance.model_dump(mode="json", include=OF_NETWORK)}
        if "support" in component_parts(guidance):  # drawn at every step
            self.settings |= config.model_dump(mode="json", include={"sampler"})
        default = network or partial(energy_mlp, config, context)
        trial = Trial(behaviour.sampler.event, behaviour.schedule, torch.zeros(1, context.states))
        own = trial.own_objective(guidance.energy.spec, guidance.beta, "guidance.energy")
        made = context.fresh(f"energy/{owner}", lambda: energy_network(own, behaviour.sampler.event, context.states, default))
        self.fit = Fit(made, lr=e.lr, steps=self.steps, decay=e.decay)
        self.beta = nn.ParameterDict({"beta": torch.tensor(guidance.beta)}).requires_grad_(False).to(context.device)
        grouped = (behaviour if support is None else support).grouped
        sample = partial(grouped, k) if k else behaviour.sample
        objective = CalibratedObjective(guidance, calibration, self.beta, self.loss_networks(), context.device)
        self._learner = EnergyLearner(self.fit, behaviour.schedule, sample, objective, batch=e.batch)

    @property
    @override
    def learner(self) -> EnergyLearner:
        return self._learner

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {module_name(self.name): self.fit.model}


def energy_mlp(config: GuidedConfig, context: RunContext) -> EnergyMLP:
    """Return the network of a recipe's ``energy_network``, for actions given states."""
    e = config.energy_network
    return EnergyMLP(context.actions, context.states, width=e.width, layers=e.layers, activation=e.activation)


class CalibratedObjective:
    """Objective that is built at its first use after a calibration, whose variances it needs.

    ``networks`` are those that its loss evaluates, besides the tensor ``beta``.
    """

    def __init__(
        self,
        guidance: GuidanceConfig,
        calibration: AdvantageCalibration,
        beta: nn.ParameterDict,
        networks: dict[str, nn.Module],
        device: torch.device,
    ) -> None:
        self.guidance, self.calibration, self.beta, self.networks = guidance, calibration, beta, networks
        self.device = device
        self._built: tuple[int, torch.Generator, Any] | None = None
        component = OBJECTIVES.find(guidance.energy.name, "guidance.energy")
        self.dimensionless: bool = is_dimensionless(component)
        if isinstance(component, HasTargets):
            self.targets = self._targets

    def loss_networks(self) -> dict[str, nn.Module]:
        """Return, by name, the networks of energy, posterior and denoiser."""
        return {"beta": self.beta, **self.networks}

    def _objective(self, generator: torch.Generator) -> Any:
        if batched.inside():  # made from the stacked tensors of all runs, for this call alone
            return self._make(generator, beta=self.beta["beta"])
        version = self.calibration.version
        if self._built is None or self._built[0] != version or self._built[1] is not generator:
            self._built = version, generator, self._make(generator)
        return self._built[2]

    def _make(self, generator: torch.Generator, **instead: Any) -> Any:
        grouped = {"support": None} if group_size(self.guidance) else {}  # the batch comes in groups already
        components = energy_components(self.guidance, self.calibration, generator) | grouped | instead
        return build(OBJECTIVES, self.guidance.energy.spec, components, "guidance.energy")

    def _targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute the objective's targets, with the same random numbers at every call."""
        targets: Tensor = self._objective(torch.Generator(self.device)).targets(x0, x, t, c)
        return targets

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Compute the objective's loss and metrics."""
        loss: tuple[Tensor, Metrics] = self._objective(generator).loss(network, x0, x, t, c, generator)
        return loss
